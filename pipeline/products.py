"""The dense product that linear layers, sparse layers and output heads are made of."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def _onednn() -> Any | None:
    """oneDNN's product of plain fp32 tensors, where it is the faster of PyTorch's two.

    On processors that are not Intel's, the library behind `torch.mm` (MKL) leaves AVX-512 unused;
    oneDNN, which PyTorch carries too, then multiplies twice as fast. On Intel's, MKL is ahead. The
    maker decides and no measurement: a run that goes on must round as it has. PyTorch has no public
    name for this product; its compiler calls it by this one.
    """
    if not torch.backends.mkldnn.is_available() or (
        _is_intels() and torch.backends.mkl.is_available()
    ):
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _is_intels() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return "GenuineIntel" in platform.processor()


_ONEDNN = _onednn()


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a @ b.T + bias for a (M, K), b (N, K) and bias (N,); fastest where `a` is contiguous and `b`
    is, or is the transpose of what is."""
    if _is_fast(a):
        return _ONEDNN(a, b, bias, "none", [], "")  # type: ignore[no-any-return,misc]
    return a @ b.t() if bias is None else torch.addmm(bias, a, b.t())


def sum_of_outer(a: Tensor, b: Tensor) -> Tensor:
    """a.T @ b for a (N, M) and b (N, K): the sum over rows of their outer products."""
    return product(a.t().contiguous(), b.t()) if _is_fast(a) else a.t() @ b


def has_fast_product(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` is more than what PyTorch does by itself."""
    return _is_fast(x) and _is_fast(weight) and x.numel() > 0


def _is_fast(a: Tensor) -> bool:
    return _ONEDNN is not None and a.dtype == torch.float32 and a.device.type == "cpu"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool = False) -> Tensor:
    """x (..., in) to (..., out) by `product`, differentiable once. The weight is (out, in), or
    (in, out) where it is `transposed`."""
    y = _Linear.apply(x.flatten(0, -2), weight, bias, transposed)
    return y.view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """What is kept for backward is the parameter itself: ZeRO-3 empties it after forward and fills
    it again before backward."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.transposed = transposed
        return product(x.contiguous(), weight.t() if transposed else weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        d_y, d_x, d_weight = d_y.contiguous(), None, None
        if wants_x:
            d_x = product(d_y, weight if ctx.transposed else weight.t())
        if wants_weight:
            d_weight = sum_of_outer(x, d_y) if ctx.transposed else sum_of_outer(d_y, x)
        return d_x, d_weight, d_y.sum(0) if wants_bias else None, None
