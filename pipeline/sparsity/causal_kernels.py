"""Causal attention that hands out the log-sum-exp of its scores and takes it back.

With both, attention over a union of key sets is made of attentions over each: results are merged by
their log-sum-exps, and a backward pass that is given the *merged* result and log-sum-exp returns
exactly what the union's gradient owes to its part. Ring attention does the same across devices.

Tensors are (B, H, T, D), log-sum-exps (B, H, T) in the accumulation type; queries and keys are
equally long. Under a `window` a query sees itself and the window - 1 keys before it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention

aten = torch.ops.aten
_SHORT_RUN = 24  # positions


class Kernel(Protocol):
    """One way to compute it. `window` is for those that slide, at a cost that is linear in T."""

    slides: bool

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Result and log-sum-exp."""

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v."""


class CpuFlash:
    """The fused kernel behind `scaled_dot_product_attention` on CPU, every floating type."""

    slides = False

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None
    ) -> tuple[Tensor, Tensor]:
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True, scale=scale)

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, True, scale=scale
        )


class Products:
    """Plain matrix products: every device and type, T scores in memory for each query."""

    slides = False

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None
    ) -> tuple[Tensor, Tensor]:
        scores = self._scores(q, k, scale, window)
        lse = scores.logsumexp(-1)
        return (scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ v, lse

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        p = (self._scores(q, k, scale, window) - lse.unsqueeze(-1)).exp()
        delta = (grad * out).sum(-1, keepdim=True, dtype=p.dtype)
        d_scores = (p * (grad @ v.mT - delta) * scale).to(q.dtype)
        return d_scores @ k, d_scores.mT @ q, p.to(grad.dtype).mT @ grad

    def _scores(self, q: Tensor, k: Tensor, scale: float, window: int | None) -> Tensor:
        length = q.shape[2]
        all_pairs = torch.ones(length, length, dtype=torch.bool, device=q.device)
        seen = all_pairs.tril() if window is None else all_pairs.tril().triu(1 - window)
        scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * scale
        return scores.masked_fill(~seen, float("-inf"))


class CudaFlash:
    """Flash attention, half precision on CUDA. Its tiles would be mostly empty in short runs, which
    plain products take."""

    slides = True

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None
    ) -> tuple[Tensor, Tensor]:
        length = q.shape[2]
        if length < _SHORT_RUN:
            return Products().forward(q, k, v, scale, window)
        out, lse, *_ = aten._flash_attention_forward(
            *(x.transpose(1, 2) for x in (q, k, v)), None, None, length, length, 0.0, True, False,
            scale=scale, **_band(window),
        )  # fmt: skip
        return out.transpose(1, 2), lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        if q.shape[2] < _SHORT_RUN:
            return Products().backward(grad, q, k, v, out, lse, scale, window)
        # No packed sequences, and no dropout whose random numbers would have to be repeated.
        length, seed = q.shape[2], torch.empty(2, dtype=torch.uint64, device=q.device)
        found = aten._flash_attention_backward(
            *(x.transpose(1, 2) for x in (grad, q, k, v, out)), lse.contiguous(), None, None,
            length, length, 0.0, True, seed, seed, scale=scale, **_band(window),
        )  # fmt: skip
        d_q, d_k, d_v = (x.transpose(1, 2) for x in found)
        return d_q, d_k, d_v


def _band(window: int | None) -> dict[str, int]:
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}


def kernel_for(q: Tensor) -> Kernel:
    """The fastest that can take tensors like `q`."""
    if q.device.type == "cpu":
        return CpuFlash()
    # The kernel reads heads in units of 8; the public function would pad others.
    if q.device.type == "cuda" and q.shape[-1] % 8 == 0:
        if can_use_flash_attention(SDPAParams(q, q, q, None, 0.0, True, False)):
            return CudaFlash()
    return Products()
