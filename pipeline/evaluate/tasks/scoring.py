"""How likely a model finds each option: sums of log-probabilities, computed many at a time.

There are three ways to read, with the same result. An mLSTM reads what options share once and goes
on from its state. A Transformer reads an example as one row: what its options share, then option
after option, none of which sees the others. Any other model reads each option as a row of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.evaluate.model import batches
from pipeline.evaluate.tasks.causal_lm import CausalLM
from pipeline.evaluate.tasks.layout import Layout, lay_out, width
from pipeline.evaluate.tasks.requests import Request
from pipeline.progress import Progress

# A processor is quickest where a batch stays in its cache and has little padding.
_BATCH_TOKENS = {"cpu": 512, "cuda": 8192}
_STREAMED_EXAMPLES = 64  # that a recurrent model reads side by side
_STREAMED_STEPS = 128
# Nats by which two ways to read an option may differ in fp32, of a sum over its tokens.
_TOLERANCE = 1e-3


class Judgement(NamedTuple):
    """Of each option: log-probability in nats, and whether it is what the model itself says."""

    log_prob: np.ndarray  # (options,) float64
    greedy: np.ndarray  # (options,) bool


# (nats, hit) of every judged prediction of a layout, in its order.
_Reader = Callable[[CausalLM, Layout], tuple[Tensor, Tensor]]


@torch.no_grad()
def judge(model: CausalLM, requests: Sequence[Request]) -> tuple[list[Judgement], bool]:
    """The judgement of each request, and whether what its options share was read once."""
    if model.recurrent:
        return _batched(model, requests, _streamed, (math.inf, _STREAMED_EXAMPLES)), True
    if max(len(request.options) for request in requests) > 1 and _can_share(model, requests):
        return _batched(model, requests, _packed, _limits(model)), True
    return judge_alone(model, requests), False


@torch.no_grad()
def judge_alone(model: CausalLM, requests: Sequence[Request]) -> list[Judgement]:
    """The judgements of any architecture but a recurrent one, each option as a row of its own."""
    rows = [
        request._replace(options=[option]) for request in requests for option in request.options
    ]
    found = iter(_batched(model, rows, _plain, _limits(model)))
    own = [[next(found) for _ in request.options] for request in requests]
    return [
        Judgement(np.concatenate([j.log_prob for j in js]), np.concatenate([j.greedy for j in js]))
        for js in own
    ]


def _limits(model: CausalLM) -> tuple[float, float]:
    return _BATCH_TOKENS[model.device.type], math.inf


def _can_share(model: CausalLM, requests: Sequence[Request]) -> bool:
    """Whether the architecture heeds positions and a mask of its own for every row: asked by
    reading the widest example both ways."""
    if not model.accepts("position_ids") or getattr(model.model.config, "sliding_window", None):
        return False
    request = max(requests, key=width)
    alone = [request._replace(options=[option]) for option in request.options]
    try:
        shared = _judge_batch(model, [request], _packed)[0].log_prob
    except (TypeError, ValueError, RuntimeError):  # a mask of four dimensions is not expected
        return False
    single = [_judge_batch(model, [row], _plain)[0].log_prob[0] for row in alone]
    # Written so that a NaN is refused too.
    return bool(np.all(np.abs(shared - single) <= _TOLERANCE))


def _batched(
    model: CausalLM, requests: Sequence[Request], read: _Reader, limits: tuple[float, float]
) -> list[Judgement]:
    """In the order of `requests`, those of similar width together."""
    found: list[Judgement | None] = [None] * len(requests)
    with Progress("judging", len(requests), "row") as progress:
        for members in batches([width(request) for request in requests], *limits):
            judged = _judge_batch(model, [requests[i] for i in members], read)
            for i, judgement in zip(members, judged, strict=True):
                found[i] = judgement
            progress.update(len(members))
    return [judgement for judgement in found if judgement is not None]


def _judge_batch(model: CausalLM, requests: Sequence[Request], read: _Reader) -> list[Judgement]:
    layout = lay_out(requests)
    nats, hits = (part.cpu() for part in read(model, layout.to(model.device)))
    rows, options, _ = layout.judged.unbind(1)
    most = layout.tails.shape[1]
    at = rows * most + options
    log_prob = torch.zeros(len(requests) * most, dtype=torch.float64)
    log_prob.index_add_(0, at, -nats.double())
    misses = torch.zeros(len(requests) * most, dtype=torch.int64)
    misses.index_add_(0, at, (~hits).long())
    return [
        Judgement(
            log_prob[i * most :][: len(request.options)].numpy(),
            misses[i * most :][: len(request.options)].numpy() == 0,
        )
        for i, request in enumerate(requests)
    ]


def _compare(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of each target under its logits (N, V), and whether it is the likeliest."""
    return (
        cross_entropy(logits.float(), targets, reduction="none"),
        logits.argmax(dim=-1) == targets,
    )


def _plain(model: CausalLM, layout: Layout) -> tuple[Tensor, Tensor]:
    """One option a row. Rows begin at the first position and end in padding, where a causal model
    cannot look, so that neither mask nor positions are needed."""
    both = torch.cat([layout.prefix, layout.tails[:, 0]], dim=1)
    empty = layout.prefix.shape[1] - layout.prefix_lengths
    longest = layout.longest
    places = (torch.arange(longest, device=both.device) + empty.unsqueeze(1)) % both.shape[1]
    rows, _, columns = layout.judged.unbind(1)
    # The places from the first that is judged on: logits of all could be more than the memory.
    at = layout.prefix_lengths[rows] - 1 + columns
    kept = longest - int(at.min())
    logits = _last_logits(model, kept, input_ids=both.gather(1, places))
    return _compare(logits[rows, at - int(at.min())], layout.targets)


def _packed(model: CausalLM, layout: Layout) -> tuple[Tensor, Tensor]:
    """One example a row: every option follows the shared tokens in position and in sight."""
    _, options, tail = layout.tails.shape
    prefix, device = layout.prefix.shape[1], layout.prefix.device
    empty = (prefix - layout.prefix_lengths).unsqueeze(1)
    places = [prefix + torch.arange(tail, device=device)] * options
    # Padding stands at positions that the model has.
    positions = torch.cat([torch.arange(prefix, device=device), *places]) - empty
    logits = _last_logits(
        model,
        1 + options * tail,
        input_ids=torch.cat([layout.prefix, layout.tails.flatten(1)], dim=1),
        attention_mask=_packed_mask(layout, model.model.dtype),
        position_ids=positions.clamp(0, layout.longest - 1),
    )
    rows, which, columns = layout.judged.unbind(1)
    at = torch.where(columns > 0, which * tail + columns, 0)
    return _compare(logits[rows, at], layout.targets)


def _packed_mask(layout: Layout, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, T), to be added to attention scores: 0 where a column sees another."""
    _, options, tail = layout.tails.shape
    prefix, device = layout.prefix.shape[1], layout.prefix.device
    # 0 is the shared part, then the number of the option that a column belongs to.
    owner = torch.arange(options + 1, device=device).repeat_interleave(
        torch.tensor([prefix, *[tail] * options], device=device)
    )
    columns = torch.arange(len(owner), device=device)
    real = columns >= (prefix - layout.prefix_lengths).unsqueeze(1)
    seen = (owner == owner.unsqueeze(1)) | (owner == 0)
    seen = seen & (columns <= columns.unsqueeze(1)) & real.unsqueeze(1)
    # Padding looks at itself, since a row of nothing would give no numbers.
    seen = seen | torch.eye(len(owner), dtype=torch.bool, device=device)
    mask = torch.zeros(seen.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


def _last_logits(model: CausalLM, kept: int, **inputs: Tensor) -> Tensor:
    """(B, kept, V): the logits of the last columns."""
    if model.accepts("logits_to_keep"):
        inputs["logits_to_keep"] = kept  # type: ignore[assignment]
    return model.model(**inputs, use_cache=False).logits[:, -kept:]


def _streamed(model: CausalLM, layout: Layout) -> tuple[Tensor, Tensor]:
    """The shared tokens of all examples, then their options, from the state after those.

    The shared part is padded on the left, and the state is zeroed where it begins: what a recurrent
    model has read, padding too, stays in its state.
    """
    _, options, tail = layout.tails.shape
    nats = torch.empty(len(layout.targets), device=layout.prefix.device)
    hits = torch.empty(len(layout.targets), dtype=torch.bool, device=layout.prefix.device)
    columns = torch.arange(layout.prefix.shape[1], device=layout.prefix.device)
    begins = columns == (layout.prefix.shape[1] - layout.prefix_lengths).unsqueeze(1)
    state: Tensor | None = None
    for at in range(0, layout.prefix.shape[1], _STREAMED_STEPS):
        here = slice(at, at + _STREAMED_STEPS)
        hidden, state = model.model.hidden(layout.prefix[:, here], state, begins[:, here])
    assert state is not None
    rows, which, places = layout.judged.unbind(1)

    def compare(mine: Tensor, found: Tensor) -> None:
        nats[mine], hits[mine] = _compare(model.model.lm_head(found), layout.targets[mine])

    first = (places == 0).nonzero().squeeze(1)
    compare(first, hidden[rows[first], -1])
    state = state.repeat_interleave(options, dim=0)
    ids = layout.tails.flatten(0, 1)
    begins = torch.zeros_like(ids, dtype=torch.bool)
    begins[:, :1] = (layout.prefix_lengths == 0).repeat_interleave(options).unsqueeze(1)
    for at in range(0, tail, _STREAMED_STEPS):
        here = slice(at, at + _STREAMED_STEPS)
        hidden, state = model.model.hidden(ids[:, here], state, begins[:, here])
        mine = ((places > at) & (places <= at + _STREAMED_STEPS)).nonzero().squeeze(1)
        compare(mine, hidden[rows[mine] * options + which[mine], places[mine] - 1 - at])
    return nats, hits
