"""From examples to tokens: answered examples in front, and where context and option meet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.errors import DataError
from pipeline.evaluate.tasks.causal_lm import CausalLM
from pipeline.evaluate.tasks.examples import Example


class Option(NamedTuple):
    """Ids of a context with what follows it; the last `judged` of them are what is judged."""

    ids: list[int]
    judged: int


class Request(NamedTuple):
    """The options of one example, and whether one of them lost its beginning to the window."""

    options: list[Option]
    cut: bool


def draw_shots(
    examples: Sequence[Example], pool: Sequence[Example], shots: int, seed: int, place: Path | str
) -> list[str]:
    """The text before each example: `shots` answered ones from `pool`, drawn for it alone.

    The draw depends on the seed and the example's number. An example that is the tested one, or
    reads the same, is never drawn. DataError when the pool is too small.
    """
    if not shots:
        return [""] * len(examples)
    copies = Counter(pool)
    before = []
    for number, example in enumerate(examples):
        wanted = shots + copies[example]
        if wanted > len(pool):
            raise DataError(
                f"{place} holds {len(pool)} examples, {wanted - len(pool)} too few to show "
                f"{shots} beside the tested one: ask for fewer shots"
            )
        drawn = np.random.default_rng([seed, number]).choice(len(pool), wanted, replace=False)
        others = [pool[i] for i in drawn if pool[i] != example][:shots]
        before.append("".join(f"{other.answered}\n\n" for other in others))
    return before


def make_requests(
    model: CausalLM, examples: Sequence[Example], before: Sequence[str]
) -> list[Request]:
    """Each example's options as ids, not longer than the model can see.

    Context and option are encoded together, and what is longer than the context's own encoding
    belongs to the option; white space at the context's end goes to the option. DataError when that
    leaves an option nothing, or more than the model can see.
    """
    contexts, wholes = [], []
    for example, shown in zip(examples, before, strict=True):
        for context, option in zip(example.contexts, example.options, strict=True):
            whole = f"{shown}{context} {option}"
            contexts.append((shown + context).rstrip())
            wholes.append(whole)
    whole_ids = model.encode(wholes)
    own = dict.fromkeys(contexts)  # an example's options share their context
    lengths = dict(zip(own, map(len, model.encode(list(own))), strict=True))
    options = [
        Option(ids, len(ids) - lengths[context])
        for ids, context in zip(whole_ids, contexts, strict=True)
    ]
    _check(model, options, wholes)
    rows = iter(options)
    return [_request(model, [next(rows) for _ in example.options]) for example in examples]


def known_words(model: CausalLM, requests: Sequence[Request]) -> np.ndarray:
    """(requests,) bool: whether the vocabulary has what is judged, in each one's first option."""
    first = (request.options[0] for request in requests)
    return np.array([model.unknown_id not in option.ids[-option.judged :] for option in first])


def _check(model: CausalLM, options: Sequence[Option], wholes: Sequence[str]) -> None:
    limit = model.position_limit
    for option, text in zip(options, wholes, strict=True):
        if option.judged < 1 or option.judged == len(option.ids):
            raise DataError(
                f"...{text[-60:]!r}: the tokenizer gives context and option {len(option.ids)} "
                f"tokens, {option.judged} of them the option's: it cannot tell them apart"
            )
        if limit is not None and option.judged > limit:
            raise DataError(
                f"...{text[-60:]!r}: an option of {option.judged} tokens, the model has {limit} "
                "positions"
            )


def _request(model: CausalLM, options: list[Option]) -> Request:
    if model.position_limit is None:
        return Request(options, False)
    # The last token is only predicted, so one more than the positions fits.
    most = model.position_limit + 1
    cut = any(len(option.ids) > most for option in options)
    return Request([option._replace(ids=option.ids[-most:]) for option in options], cut)
