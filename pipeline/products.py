"""The dense product that sparse layers and output heads are made of."""

from __future__ import annotations

import torch
from torch import Tensor

# On processors that are not Intel's, the library behind `torch.mm` (MKL) leaves AVX-512 unused;
# oneDNN, which PyTorch carries too, then multiplies twice as fast, and nowhere slower. PyTorch has
# no public name for its product of plain fp32 tensors; this one is what its compiler calls.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
if not torch.backends.mkldnn.is_available():
    _ONEDNN = None


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a @ b.T + bias for a (M, K), b (N, K) and bias (N,); fastest where `a` is contiguous and `b`
    is, or is the transpose of what is."""
    if _ONEDNN is not None and a.dtype == torch.float32 and a.device.type == "cpu":
        return _ONEDNN(a, b, bias, "none", [], "")  # type: ignore[no-any-return]
    return a @ b.t() if bias is None else torch.addmm(bias, a, b.t())


def sum_of_outer(a: Tensor, b: Tensor) -> Tensor:
    """a.T @ b for a (N, M) and b (N, K): the sum over rows of their outer products."""
    return product(a.t().contiguous(), b.t()) if a.device.type == "cpu" else a.t() @ b
