"""The factored output matrix against dense SGD on W itself, in float64, for thousands of steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data_prep.errors import Diverged, RecipeError
from pipeline.heads.factors import Factors
from pipeline.heads.spherical import build_loss
from pipeline.heads.sums import Examples, GradientSums

OUTPUTS, WIDTH, EXAMPLES = 150, 8, 5
RATES = {"squared": 2e-3, "spherical": 0.05, "taylor": 0.2, "z": 1.0}


class Stream:
    """Zipf targets, equal ones within a batch; inputs of a mean above zero, as after a ReLU."""

    def __init__(self, seed: int = 0, targets: int = 1) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.targets = targets
        self.shares = 1 / torch.arange(1, OUTPUTS + 1, dtype=torch.float64)

    def batch(self) -> tuple[Tensor, Tensor]:
        h = torch.randn(EXAMPLES, WIDTH, generator=self.generator, dtype=torch.float64).clamp_min(0)
        ids = torch.multinomial(
            self.shares, EXAMPLES * self.targets, True, generator=self.generator
        )
        return h, ids.view(EXAMPLES, self.targets)

    def matrix(self) -> Tensor:
        return 0.1 * torch.randn(OUTPUTS, WIDTH, generator=self.generator, dtype=torch.float64)


def dense_gradient(name: str, weight: Tensor, h: Tensor, ids: Tensor) -> Tensor:
    weight = weight.detach().requires_grad_()
    o = h @ weight.t()
    losses = build_loss(name)((o * o).sum(1), o.sum(1), o.gather(1, ids), OUTPUTS)
    return torch.autograd.grad(losses.sum(), weight)[0]


def sums_of(name: str, factors: Factors, h: Tensor, ids: Tensor) -> GradientSums:
    """As a head makes them: from Q, W^T 1 and the rows of the targets."""
    q = ((h @ factors.gram) * h).sum(1).requires_grad_()
    s = (h @ factors.total).requires_grad_()
    a = torch.einsum("nd,nkd->nk", h, factors.rows(ids)).requires_grad_()
    losses = build_loss(name)(q, s, a, OUTPUTS)
    grads = torch.autograd.grad(losses.sum(), (q, s, a), allow_unused=True)
    gq, gs, ga = (
        torch.zeros_like(x) if g is None else g for x, g in zip((q, s, a), grads, strict=True)
    )
    sums = GradientSums(WIDTH, torch.device("cpu"), torch.float64)
    sums.add(Examples(h, gq, gs, ga, ids))
    return sums


def error(factors: Factors, weight: Tensor) -> float:
    return float((factors.rows(slice(None)) - weight).norm() / weight.norm())


@pytest.mark.parametrize("name", RATES)
def test_thousands_of_steps_equal_dense_sgd(name: str) -> None:
    stream = Stream()
    weight = stream.matrix()
    factors = Factors(weight.clone())
    rate = RATES[name]
    for _ in range(3000):
        h, ids = stream.batch()
        factors.sgd_step(sums_of(name, factors, h, ids), rate)
        weight = weight - rate * dense_gradient(name, weight, h, ids)
    assert error(factors, weight) < 1e-9
    torch.testing.assert_close(factors.gram, weight.t() @ weight, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(factors.total, weight.sum(0), rtol=1e-8, atol=1e-9)
    if name == "squared":
        assert factors.moved_directions > 0  # the trouble did occur, and was dealt with


@pytest.mark.parametrize("name", RATES)
def test_clipping_decay_and_a_schedule_are_exact(name: str) -> None:
    stream = Stream(seed=1)
    weight = stream.matrix()
    factors = Factors(weight.clone())
    clipped = 0
    for step in range(600):
        h, ids = stream.batch()
        rate = RATES[name] * (1 - step / 1200)
        gradient = dense_gradient(name, weight, h, ids)
        norm = factors.sgd_step(sums_of(name, factors, h, ids), rate, decay=0.05, clip_norm=1.0)
        assert norm == pytest.approx(float(gradient.norm()), rel=1e-7)
        clipped += norm > 1.0
        factor = min(1.0, 1.0 / float(gradient.norm()))
        weight = (1 - rate * 0.05) * weight - rate * factor * gradient
    assert error(factors, weight) < 1e-9
    assert clipped > 10


def test_without_stabilising_precision_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would show if the condition number were left to itself."""
    stream = Stream()
    weight = stream.matrix()
    factors = Factors(weight.clone())
    monkeypatch.setattr(factors, "stabilise", lambda: None)
    with pytest.raises((Diverged, AssertionError)):
        for _ in range(3000):
            h, ids = stream.batch()
            factors.sgd_step(sums_of("squared", factors, h, ids), RATES["squared"])
            weight = weight - RATES["squared"] * dense_gradient("squared", weight, h, ids)
        assert error(factors, weight) < 1e-9


def test_many_targets() -> None:
    stream = Stream(targets=3)
    weight = stream.matrix()
    factors = Factors(weight.clone())
    for _ in range(200):
        h, ids = stream.batch()
        factors.sgd_step(sums_of("squared", factors, h, ids), 2e-3)
        weight = weight - 2e-3 * dense_gradient("squared", weight, h, ids)
    assert error(factors, weight) < 1e-10


@pytest.mark.parametrize("spread", [0.3, 30.0])
def test_stabilising_changes_u_and_not_w(spread: float) -> None:
    """Few directions are moved one by one, many by folding U into V."""
    stream = Stream()
    factors = Factors(stream.matrix())
    scales = torch.ones(WIDTH, dtype=torch.float64)
    scales[0], scales[1] = 100.0, 0.01
    if spread > 1:
        scales = torch.logspace(-3, 3, WIDTH, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))
    factors.u = basis @ torch.diag(scales) @ basis
    weight = factors.rows(slice(None))
    factors.stabilise()
    assert torch.linalg.cond(factors.u) < 10
    assert error(factors, weight) < 1e-12


def test_a_step_past_repair_is_refused_and_changes_nothing() -> None:
    stream = Stream()
    factors = Factors(stream.matrix())
    weight = factors.rows(slice(None)).clone()
    sums = GradientSums(WIDTH, torch.device("cpu"), torch.float64)
    h = torch.zeros(1, WIDTH, dtype=torch.float64)
    h[0, 0] = 1.0
    none, target = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.int64)
    sums.add(Examples(h, torch.full((1,), 0.5, dtype=torch.float64), none[0], none, target))
    with pytest.raises(Diverged, match="past repair; lower head.lr"):
        factors.sgd_step(sums, 1.0)  # 1 - eta C is exactly singular
    assert torch.equal(factors.rows(slice(None)), weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_sums_that_are_not_finite_are_refused_and_change_nothing(bad: float) -> None:
    stream = Stream()
    factors = Factors(stream.matrix())
    before = {name: tensor.clone() for name, tensor in factors.tensors().items()}
    h, ids = stream.batch()
    sums = sums_of("taylor", factors, h, ids)
    sums.b[2] = bad
    with pytest.raises(Diverged, match="not finite"):
        factors.sgd_step(sums, 0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in factors.tensors().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_storage_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(RecipeError, match="cannot be kept in torch"):
        Factors(torch.zeros(4, 2, dtype=dtype))
