"""Attention and output heads on a GPU against the same on a processor, which other tests hold to
the plain formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from pipeline.clock import StepResult
from pipeline.heads.adaptive import AdaptiveHead
from pipeline.heads.factored import FactoredHead
from pipeline.heads.gram import GramHead
from pipeline.heads.library import LibrarySoftmaxHead
from pipeline.heads.sampled import SampledHead
from pipeline.heads.softmax import SoftmaxHead
from pipeline.heads.spherical import build_loss
from pipeline.protocols import Head
from pipeline.sparsity.attention import sparse_attention
from pipeline.sparsity.patterns import Kind, Pattern
from tests.pipeline.interpreter import assert_near

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
OUTPUTS, WIDTH = 500, 64


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("depth", [64, 20])  # with the fused kernel and without
@pytest.mark.parametrize("window", [32, 4])  # runs of 10 and of 75
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 0.03), (torch.float16, 0.004)],
)
def test_sparse_attention(
    kind: Kind, window: int, depth: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    drawn = torch.randn(4, 2, 3, 300, depth).to(dtype)

    def through(device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        q, k, v, d_out = drawn.to(device, dtype)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        out = sparse_attention(*leaves, Pattern(kind, window))
        found = [out, *torch.autograd.grad(out, leaves, d_out)]
        return dict(zip(("out", "q", "k", "v"), (x.cpu() for x in found), strict=True))

    assert_near(through(GPU, dtype), through(CPU, torch.float64), tolerance)


def through_head(make: Callable[[], Head], device: torch.device, dtype: torch.dtype, biased: bool):  # type: ignore[no-untyped-def]
    """The loss of a micro-batch, and gradients of hidden states, output matrix and bias."""
    random = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(OUTPUTS, WIDTH, generator=random) / 8, torch.zeros(OUTPUTS)
    hidden = torch.randn(4, 16, WIDTH, generator=random)
    targets = torch.randint(OUTPUTS, (4, 16), generator=random)
    weights = (torch.rand(4, 16, generator=random) < 0.8).float()
    w, b, h = (x.to(device, dtype).requires_grad_() for x in (weight, bias, hidden))
    torch.manual_seed(2)
    head = make()
    if isinstance(head, AdaptiveHead):  # makes parameters of its own, where the matrix is
        head.bind(weight, bias if biased else None)
    else:
        head.bind(w, b if biased else None)
    head.to(device, dtype)
    loss, count = head(h, targets.to(device), weights.to(device))
    loss.backward()
    found = {"loss": loss.detach(), "count": count, "hidden": h.grad}
    if isinstance(head, GramHead):
        rows = w if not biased else torch.cat([w, b.unsqueeze(1)], dim=1)
        found["weight"] = head.sums.gradient(rows.detach())
    elif not isinstance(head, AdaptiveHead):
        found |= {"weight": w.grad} | ({"bias": b.grad} if biased else {})
    return {name: values.float().cpu() for name, values in found.items()}


HEADS: dict[str, Callable[[], Head]] = {
    "softmax": lambda: SoftmaxHead(chunk_tokens=20),
    "sampled": lambda: SampledHead(100, seed=1),
    "adaptive": lambda: AdaptiveHead([50, 200], 2.0),
    **{
        name: lambda name=name: GramHead(build_loss(name), 64, learned_scale=True)  # type: ignore[misc]
        for name in ("squared", "spherical", "taylor", "z")
    },
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.03)])
def test_heads(name: str, biased: bool, dtype: torch.dtype, tolerance: float) -> None:
    # The processor reads what the GPU reads, in the same precision, so that only sums differ.
    assert_near(
        through_head(HEADS[name], GPU, dtype, biased),
        through_head(HEADS[name], CPU, dtype, biased),
        tolerance,
    )


@pytest.mark.parametrize("library", ["torch", "liger", "cce"])
@pytest.mark.parametrize("biased", [False, True])
def test_a_librarys_softmax_is_ours(library: str, biased: bool) -> None:
    if library == "cce" and biased:
        pytest.skip("it takes no bias")
    package = {"liger": "liger_kernel", "cce": "cut_cross_entropy"}.get(library)
    if package is not None:
        pytest.importorskip(package)
    elif not hasattr(nn.functional, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")
    theirs = through_head(lambda: LibrarySoftmaxHead(library), GPU, torch.bfloat16, biased)
    ours = through_head(HEADS["softmax"], GPU, torch.bfloat16, biased)
    assert_near(theirs, ours, 0.03)


def test_the_factored_head_takes_the_steps_it_takes_on_a_processor() -> None:
    def weights(device: torch.device) -> Tensor:
        random = torch.Generator().manual_seed(3)
        head = FactoredHead(build_loss("taylor"), 16, lr_share=1.0, clip_norm=1.0)
        weight = torch.randn(OUTPUTS, WIDTH, generator=random) / 8
        head.bind(nn.Parameter(weight.to(device)))
        head.rate = 0.2
        for _ in range(50):
            h = torch.randn(1, 16, WIDTH, generator=random).to(device).requires_grad_()
            ids = torch.randint(OUTPUTS, (1, 16), generator=random).to(device)
            head(h, ids, torch.ones(1, 16, device=device))[0].backward()
            head.after_step(StepResult.APPLIED)
        head.settle()
        return head.weight.detach().cpu()

    assert_near({"weight": weights(GPU)}, {"weight": weights(CPU)}, 1e-4)
