"""The chunked softmax head against plain cross-entropy in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.clock import Clock
from pipeline.heads.softmax import SoftmaxHead

torch.set_num_threads(1)

ROWS, WINDOW, WIDTH, VOCABULARY = 3, 5, 8, 11


class Problem:
    """Random hidden states, targets and weights, a third of them zero."""

    def __init__(self, seed: int = 0, bias: bool = True) -> None:
        self.g = torch.Generator().manual_seed(seed)
        self.hidden = self.normal(ROWS, WINDOW, WIDTH)
        self.weight = self.normal(VOCABULARY, WIDTH)
        self.bias = self.normal(VOCABULARY) if bias else None
        self.targets = torch.randint(VOCABULARY, (ROWS, WINDOW), generator=self.g)
        uniform = torch.rand(ROWS, WINDOW, generator=self.g)
        self.weights = torch.where(uniform < 1 / 3, 0.0, uniform)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.g)

    def head(self, dtype: torch.dtype = torch.float32, **options: Any) -> SoftmaxHead:
        head = SoftmaxHead(**options)
        bias = None if self.bias is None else nn.Parameter(self.bias.to(dtype))
        head.bind(nn.Parameter(self.weight.to(dtype)), bias)
        return head


def wanted(
    problem: Problem, scale: float, cap: float | None, factor: float = 1.0
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients by autograd in float64."""
    tensors = [t for t in (problem.hidden, problem.weight, problem.bias) if t is not None]
    hidden, weight, *bias = (t.double().requires_grad_() for t in tensors)
    logits = (hidden @ weight.t() + (bias[0] if bias else 0)) * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), problem.targets.flatten(), reduction="none"
    )
    loss = (losses * problem.weights.flatten().double()).sum()
    return loss.detach(), list(torch.autograd.grad(loss * factor, [hidden, weight, *bias]))


def found(
    problem: Problem, head: SoftmaxHead, factor: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, list[Tensor]]:
    hidden = problem.hidden.to(dtype).requires_grad_()
    loss, count = head(hidden, problem.targets, problem.weights)
    (loss * factor).backward()
    grads = [hidden.grad, *(p.grad for p in head.parameters())]
    return loss.detach(), count, [g for g in grads if g is not None]


shapes = st.tuples(
    st.sampled_from([1.0, 0.25, 3.0]), st.sampled_from([None, 2.0, 30.0])
)  # scale, soft cap


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999), chunk=st.integers(1, 20), bias=st.booleans(), shape=shapes,
    factor=st.sampled_from([1.0, 0.01, -3.0]),
)  # fmt: skip
def test_loss_and_gradients_equal_cross_entropy(
    seed: int, chunk: int, bias: bool, shape: tuple[float, float | None], factor: float
) -> None:
    problem = Problem(seed, bias)
    head = problem.head(chunk_tokens=chunk, logit_scale=shape[0], logit_softcap=shape[1])
    loss, count, grads = found(problem, head, factor)
    true_loss, true_grads = wanted(problem, *shape, factor)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(count, problem.weights.sum())
    for mine, true in zip(grads, true_grads, strict=True):
        # Rounding is relative to the largest term of a sum, which a small result may hide.
        atol = max(1e-5, 1e-6 * float(true.abs().max()))
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_stays_close_to_fp32(dtype: torch.dtype, close: float) -> None:
    problem = Problem(3)
    loss, _, grads = found(problem, problem.head(dtype, chunk_tokens=4), dtype=dtype)
    true_loss, true_grads = wanted(problem, 1.0, None)
    assert loss.dtype == torch.float32
    assert abs(loss.double() / true_loss - 1) < close
    for mine, true in zip(grads, true_grads, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - true).norm() / true.norm() < close


def test_a_factor_too_small_for_fp16_loses_nothing_before_the_loss_scale_undoes_it() -> None:
    problem = Problem(3)
    plain = problem.head(torch.float16)
    _, _, straight = found(problem, plain, dtype=torch.float16)
    hidden = problem.hidden.half().requires_grad_()
    head = problem.head(torch.float16)
    loss, _ = head(hidden, problem.targets, problem.weights)
    (loss * 2.0**-40 * 2.0**40).backward()  # a share of many tokens, then the loss scale
    assert head.weight.grad is not None
    assert torch.equal(hidden.grad, straight[0]) and torch.equal(head.weight.grad, straight[1])


def test_padding_never_counts() -> None:
    problem, garbage = Problem(5), Problem(5)
    padded = problem.weights == 0
    assert padded.any() and not padded.all()
    garbage.hidden[padded] = 1e4
    garbage.targets[padded] = 0
    clean = found(problem, problem.head(chunk_tokens=4))
    dirty = found(garbage, garbage.head(chunk_tokens=4))
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])
    for a, b in zip(clean[2], dirty[2], strict=True):
        torch.testing.assert_close(a, b)
    assert (dirty[2][0][padded] == 0).all()


def test_log_prob_is_the_distribution_of_the_loss() -> None:
    problem = Problem(6)
    head = problem.head(logit_scale=0.5, logit_softcap=4.0)
    log_p = head.log_prob(problem.hidden)
    assert log_p.shape == (ROWS, WINDOW, VOCABULARY)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(ROWS, WINDOW))
    picked = log_p.gather(-1, problem.targets.unsqueeze(-1)).squeeze(-1)
    loss, _ = head(problem.hidden, problem.targets, problem.weights)
    torch.testing.assert_close(loss, -(picked * problem.weights).sum())


def test_topk_gives_the_largest_probabilities_in_order() -> None:
    problem = Problem(7)
    head = problem.head()
    values, ids = head.topk(problem.hidden, 4)
    everything = head.log_prob(problem.hidden).detach()
    for row in range(ROWS):
        for t in range(WINDOW):
            ranked = sorted(
                range(VOCABULARY), key=everything[row, t].tolist().__getitem__, reverse=True
            )
            assert ids[row, t].tolist() == ranked[:4]
            assert values[row, t].tolist() == everything[row, t][ranked[:4]].tolist()


def test_a_loss_without_autograd_makes_no_gradients() -> None:
    problem = Problem(8)
    head = problem.head(torch.float64, chunk_tokens=4)  # whose products PyTorch counts
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss, _ = head(problem.hidden.double(), problem.targets, problem.weights)
    assert counter.get_total_flops() == 2 * ROWS * WINDOW * WIDTH * VOCABULARY
    torch.testing.assert_close(loss.double(), wanted(problem, 1.0, None)[0], rtol=1e-5, atol=1e-5)


def test_frozen_weights_leave_the_gradient_of_the_hidden_states() -> None:
    problem = Problem(9)
    head = problem.head().requires_grad_(False)
    _, _, grads = found(problem, head)
    torch.testing.assert_close(
        grads[0].double(), wanted(problem, 1.0, None)[1][0], rtol=1e-4, atol=1e-5
    )


def test_the_head_shares_the_matrix_it_is_given() -> None:
    matrix = nn.Parameter(torch.randn(VOCABULARY, WIDTH))
    head = SoftmaxHead()
    head.bind(matrix)
    assert head.weight is matrix and dict(head.named_parameters())["weight"] is matrix
    assert head.owned_parameters() == {} == head.plugin_state()
    assert head.flops(Clock()) == head.dense_flops() == 2 * VOCABULARY * WIDTH
    with pytest.raises(ValueError, match="output matrix"):
        SoftmaxHead().bind(None)


def test_fp16_keeps_the_gradients_of_rare_outputs() -> None:
    """Before the loss scale comes in they are far below what fp16 can hold."""
    torch.manual_seed(0)
    weight = torch.randn(500, 16)
    weight[1:] *= 0.1
    hidden = torch.randn(64, 16) * 0.05 + weight[0] * 1.6  # all but one output are very rare
    targets, weights = torch.zeros(64, dtype=torch.long), torch.ones(64)

    def gradient(dtype: torch.dtype, scale: float) -> torch.Tensor:
        w = weight.to(torch.float16).to(dtype).requires_grad_()
        head = SoftmaxHead(16)
        head.bind(w)
        h = hidden.to(torch.float16).to(dtype).unsqueeze(0)
        loss, _ = head(h, targets.unsqueeze(0), weights.unsqueeze(0))
        (loss * scale).backward()
        assert w.grad is not None
        return w.grad.double() / scale

    exact = gradient(torch.float64, 1.0)[1:]
    found = gradient(torch.float16, 2.0**14)[1:]
    assert exact.norm(dim=1).median() < 1e-4 and (found != 0).all(dim=1).double().mean() > 0.9
    assert ((found - exact).norm(dim=1) / exact.norm(dim=1)).median() < 0.05
