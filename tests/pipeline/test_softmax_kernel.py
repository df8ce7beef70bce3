"""The kernel of the softmax head against the plain formulas in float64.

Without a GPU it runs in Triton's interpreter, which has to be chosen before Triton is imported:
`check_*` run in a process of their own.
"""

from __future__ import annotations

import pytest
import torch

from pipeline.heads.softmax import chunk_losses
from tests.pipeline.interpreter import assert_near, run_checks

pytest.importorskip("triton", reason="triton is not installed")
torch.set_num_threads(1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel itself is tested here")
def test_kernel_in_the_interpreter() -> None:
    run_checks(__file__)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernel_on_the_gpu() -> None:
    for vocabulary in (1, 7, 300, 9000):
        check_losses_and_slopes(vocabulary, 0.25, 2.0, torch.float32, 1e-5)
        check_losses_and_slopes(vocabulary, 3.0, None, torch.bfloat16, 1e-2)


@pytest.mark.parametrize("vocabulary", [1, 7, 300, 9000])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, 2.0), (3.0, None)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)],
)
def check_losses_and_slopes(
    vocabulary: int, scale: float, softcap: float | None, dtype: torch.dtype, tolerance: float
) -> None:
    from pipeline.heads.softmax_kernel import row_losses

    device = "cuda" if torch.cuda.is_available() else "cpu"
    random = torch.Generator().manual_seed(vocabulary)
    logits = (3 * torch.randn(5, vocabulary, generator=random)).to(dtype)
    targets = torch.randint(vocabulary, (5,), generator=random)
    weights = torch.tensor([1.0, 0.0, 0.5, 1.0, 2.0])
    wanted = chunk_losses(logits.double(), targets, weights.double(), scale, softcap, True)
    logits, targets, weights = (t.to(device) for t in (logits, targets, weights))
    told = row_losses(logits.clone(), targets, weights, scale, softcap, False)
    slopes = logits.clone()
    losses = row_losses(slopes, targets, weights, scale, softcap, True)
    got = {"told": told.cpu(), "losses": losses.cpu(), "slopes": slopes.cpu()}
    assert_near(got, {"told": wanted[0], "losses": wanted[0], "slopes": wanted[1]}, tolerance)
