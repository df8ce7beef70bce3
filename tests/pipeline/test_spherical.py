"""Losses of the spherical family and the sums that hold the gradient of their output matrix."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from data_prep.errors import RecipeError
from pipeline.clock import Clock
from pipeline.heads.gram import GramHead
from pipeline.heads.spherical import SphericalLoss, build_loss
from pipeline.heads.sums import Examples, GradientSums

NAMES = ["squared", "spherical", "taylor", "z"]
OUTPUTS, WIDTH, EXAMPLES = 40, 7, 25


class Problem(NamedTuple):
    weight: Tensor
    hidden: Tensor
    ids: Tensor
    values: Tensor | None


def problem(targets: int = 1, dtype: torch.dtype = torch.float64, seed: int = 0) -> Problem:
    """Equal targets occur, in one example too."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    ids = torch.randint(OUTPUTS // 4, (EXAMPLES, targets), generator=generator)
    values = normal(EXAMPLES, targets) if targets > 1 else None
    return Problem(normal(OUTPUTS, WIDTH) / 3, normal(EXAMPLES, WIDTH) + 0.2, ids, values)


def dense_losses(loss: SphericalLoss, p: Problem, weight: Tensor, hidden: Tensor) -> Tensor:
    """The loss of each example with all outputs written out, by its textbook formula."""
    o = hidden @ weight.t()
    a = o.gather(1, p.ids)
    if loss.name == "squared":
        y = torch.zeros_like(o)
        y.scatter_add_(1, p.ids, torch.ones_like(a) if p.values is None else p.values)
        return ((o - y) ** 2).sum(dim=1)
    a = a.squeeze(1)
    if loss.name == "spherical":
        return -torch.log((a**2 + 1e-2) / (o**2 + 1e-2).sum(dim=1))
    if loss.name == "taylor":
        return -torch.log((1 + a + a**2 / 2) / (1 + o + o**2 / 2).sum(dim=1))
    deviation = (o.var(dim=1, unbiased=False) + 1e-8).sqrt()
    z = (a - o.mean(dim=1)) / deviation
    return torch.log1p(torch.exp(0.1 * (10.0 - z))) / 0.1


def statistics(p: Problem, weight: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    o = hidden @ weight.t()
    return (o * o).sum(dim=1), o.sum(dim=1), o.gather(1, p.ids)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_and_its_gradients_are_those_of_the_dense_formula(name: str) -> None:
    loss, p = build_loss(name), problem()
    weight, hidden = p.weight.requires_grad_(), p.hidden.requires_grad_()
    found = loss(*statistics(p, weight, hidden), OUTPUTS)
    expected = dense_losses(loss, p, weight, hidden)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(found.sum(), (weight, hidden))
    theirs = torch.autograd.grad(expected.sum(), (weight, hidden))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_many_targets_with_values_under_the_squared_loss() -> None:
    p = problem(targets=3)
    distinct = torch.stack([torch.randperm(OUTPUTS)[:3] for _ in range(EXAMPLES)])
    p = p._replace(ids=distinct)
    loss = build_loss("squared")
    found = loss(*statistics(p, p.weight, p.hidden), OUTPUTS, p.values)
    torch.testing.assert_close(found, dense_losses(loss, p, p.weight, p.hidden))


@pytest.mark.parametrize("name", ["spherical", "taylor", "z"])
def test_one_target_only(name: str) -> None:
    p = problem(targets=3)
    with pytest.raises(RecipeError, match="takes one target an example.*found 3 with values"):
        build_loss(name)(*statistics(p, p.weight, p.hidden), OUTPUTS, p.values)


def test_a_loss_outside_the_family_is_refused_with_the_reason() -> None:
    with pytest.raises(RecipeError, match="'softmax' is outside the spherical family: .*taylor"):
        build_loss("softmax")


@pytest.mark.parametrize("name", ["spherical", "taylor"])
def test_scores_are_log_probabilities_less_a_constant(name: str) -> None:
    loss, p = build_loss(name), problem()
    log_prob = loss.scores(p.hidden @ p.weight.t()).log_softmax(dim=1)
    found = loss(*statistics(p, p.weight, p.hidden), OUTPUTS)
    torch.testing.assert_close(-log_prob.gather(1, p.ids).squeeze(1), found)


@pytest.mark.parametrize("targets", [1, 3])
def test_the_sums_hold_the_exact_gradient_and_its_norm(targets: int) -> None:
    p = problem(targets)
    loss = build_loss("squared" if targets > 1 else "taylor")
    weight = p.weight.requires_grad_()
    q, s, a = statistics(p, weight, p.hidden)
    losses = loss(q, s, a, OUTPUTS, p.values)
    expected = torch.autograd.grad(losses.sum(), weight, retain_graph=True)[0]
    gq, gs, ga = torch.autograd.grad(losses.sum(), (q, s, a), allow_unused=True)
    gs = torch.zeros_like(s) if gs is None else gs

    sums = GradientSums(WIDTH, torch.device("cpu"), torch.float64)
    for part in (slice(0, 9), slice(9, None)):  # two micro-batches
        sums.add(Examples(p.hidden[part], gq[part], gs[part], ga[part], p.ids[part]))
    weight = weight.detach()
    torch.testing.assert_close(sums.gradient(weight), expected, rtol=1e-10, atol=1e-12)
    ids, _ = sums.rows()
    assert len(ids) == len(torch.unique(p.ids))
    gram_c, rows_s = weight.t() @ weight @ sums.c, weight[ids].t() @ sums.rows()[1]
    norm = sums.norm_squared(gram_c, rows_s, weight.sum(dim=0), OUTPUTS)
    torch.testing.assert_close(norm, (expected**2).sum(), rtol=1e-10, atol=1e-12)
    sums.scale(3.0)
    torch.testing.assert_close(sums.gradient(weight), 3 * expected, rtol=1e-10, atol=1e-12)
    sums.clear()
    assert not sums.gradient(weight).any()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_the_dense_formula(name: str, biased: bool, learned: bool) -> None:
    p = problem(dtype=torch.float32)
    bias = torch.linspace(-1, 1, OUTPUTS).requires_grad_() if biased else None
    head = GramHead(build_loss(name), 1, logit_scale=0.7, learned_scale=learned)
    head.bind(p.weight.requires_grad_(), bias)
    if head.scale is not None and head.offset is not None:
        head.scale.data.fill_(1.3)
        head.offset.data.fill_(-0.4)
    hidden = p.hidden.requires_grad_()
    weights = torch.rand(5, 5)
    shape = (5, 5, -1)
    found, count = head(hidden.view(shape), p.ids.view(5, 5), weights)
    assert count == weights.sum()
    found.backward()

    doubles = [t.detach().double().requires_grad_() for t in (p.weight, hidden)]
    o_bias = None if bias is None else bias.detach().double().requires_grad_()
    columns, inputs = doubles[0], doubles[1] * 0.7
    if o_bias is not None:
        columns = torch.cat([columns, o_bias[:, None]], dim=1)
        inputs = torch.cat([inputs, torch.full((EXAMPLES, 1), 0.7, dtype=torch.float64)], dim=1)
    if learned:
        columns = torch.cat([1.3 * columns, torch.full((OUTPUTS, 1), -0.4)], dim=1)
        inputs = torch.cat([inputs, torch.ones(EXAMPLES, 1, dtype=torch.float64)], dim=1)
    losses = dense_losses(head.spherical, p, columns, inputs)
    expected = (losses * weights.flatten()).sum()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(hidden.grad, doubles[1].grad.float(), rtol=1e-4, atol=1e-5)
    assert p.weight.grad is None
    gradient = head.sums.gradient(head._rows(slice(None)))
    torch.testing.assert_close(gradient[:, :WIDTH], doubles[0].grad.float(), rtol=1e-4, atol=1e-4)
    if bias is not None and o_bias is not None:
        torch.testing.assert_close(gradient[:, -1], o_bias.grad.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_and_topk(name: str) -> None:
    p = problem(dtype=torch.float32)
    head = GramHead(build_loss(name), 1)
    head.bind(p.weight)
    log_prob = head.log_prob(p.hidden)
    torch.testing.assert_close(log_prob.exp().sum(dim=1), torch.ones(EXAMPLES))
    scores = head.spherical.scores(p.hidden @ p.weight.t())
    assert torch.equal(head.topk(p.hidden, 3)[1], scores.topk(3)[1])


def test_no_tensor_of_tokens_times_vocabulary_exists() -> None:
    """Every tensor that any operation of the loss or its backward makes is looked at."""
    from torch.utils._python_dispatch import TorchDispatchMode

    outputs, tokens = 4096, 512
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            found = out if isinstance(out, tuple | list) else [out]
            largest = max([largest, *(t.numel() for t in found if isinstance(t, Tensor))])
            return out

    head = GramHead(build_loss("taylor"), 1)
    head.bind(torch.randn(outputs, 8))
    hidden = torch.randn(1, tokens, 8, requires_grad=True)
    with Watch():
        ids = torch.randint(outputs, (1, tokens))
        head(hidden, ids, torch.ones(1, tokens))[0].backward()
        head.sums.gradient(head.weight)
    assert largest == outputs * 8  # W itself


def test_what_is_done_once_a_step_is_shared_by_the_tokens_of_that_step() -> None:
    head = GramHead(build_loss("taylor"), lambda applied: 100 if applied < 5 else 1000)
    head.bind(torch.zeros(50, 8))
    of_a_token, once = 4.0 * 8**2, 4.0 * 50 * 8**2
    counted = [3 * head.flops(Clock(applied=applied)) for applied in (4, 5)]
    assert counted == pytest.approx([of_a_token + once / 100, of_a_token + once / 1000])
