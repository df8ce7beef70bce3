"""One window of the multiplicative LSTM as a single differentiable step.

Autograd over the time loop would keep a node for every small operation and form weight gradients
step by step. Here forward and backward are written by hand, once for processors (`window_cpu`) and
once for GPUs (`window_gpu`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# By name: the loader of exported models fetches only what is imported from a file in this form.
from .window_cpu import Pool
from .window_cpu import backward as cpu_backward
from .window_cpu import forward as cpu_forward
from .window_gpu import backward as gpu_backward
from .window_gpu import forward as gpu_forward

_CPU, _GPU = (cpu_forward, cpu_backward), (gpu_forward, gpu_backward)


class MLSTMWindow(torch.autograd.Function):
    """(x, w_mx, w_x, bias, w_mh, w_h, c0, h0, resets, pool) -> hidden states (B, T, H), c_T (B, H).

    x (T, B, E); w_mx (H, E), w_x (4H, E), w_mh (H, H) and w_h (4H, H) are (outputs, inputs), their
    gates in the order i, f, o, u; resets is None or (B, T) bool, True where the state is zeroed
    before the token.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        w_mx: Tensor,
        w_x: Tensor,
        bias: Tensor,
        w_mh: Tensor,
        w_h: Tensor,
        c0: Tensor,
        h0: Tensor,
        resets: Tensor | None,
        pool: Pool,
    ) -> tuple[Tensor, Tensor]:
        forward, ctx.backward_on_device = _GPU if x.is_cuda else _CPU
        weights = (w_mx, w_x, bias, w_mh, w_h)
        hidden, c_last, ctx.kept = forward(
            x, weights, c0, h0, resets, pool, any(ctx.needs_input_grad)
        )
        ctx.save_for_backward(x, *weights)
        return hidden, c_last

    @staticmethod
    def backward(ctx: Any, d_hidden: Tensor, d_c_last: Tensor) -> Any:  # type: ignore[override]
        x, *weights = ctx.saved_tensors
        d = ctx.backward_on_device(ctx.kept, x, tuple(weights), d_hidden, d_c_last)
        return (*d, None, None)


class RecomputedMLSTMWindow(torch.autograd.Function):
    """The same, but nothing is kept from forward to backward, which computes forward again."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        w_mx: Tensor,
        w_x: Tensor,
        bias: Tensor,
        w_mh: Tensor,
        w_h: Tensor,
        c0: Tensor,
        h0: Tensor,
        resets: Tensor | None,
        pool: Pool,
    ) -> tuple[Tensor, Tensor]:
        forward, _ = _GPU if x.is_cuda else _CPU
        weights = (w_mx, w_x, bias, w_mh, w_h)
        hidden, c_last, _ = forward(x, weights, c0, h0, resets, pool, False)
        ctx.save_for_backward(x, *weights, c0, h0)
        ctx.resets, ctx.pool = resets, pool
        return hidden, c_last

    @staticmethod
    def backward(ctx: Any, d_hidden: Tensor, d_c_last: Tensor) -> Any:  # type: ignore[override]
        x, *weights, c0, h0 = ctx.saved_tensors
        forward, backward = _GPU if x.is_cuda else _CPU
        *_, kept = forward(x, tuple(weights), c0, h0, ctx.resets, ctx.pool, True)
        d = backward(kept, x, tuple(weights), d_hidden, d_c_last)  # type: ignore[arg-type]
        return (*d, None, None)
