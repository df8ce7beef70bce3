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
    """(x, w_mx, w_x, bias, w_mh, w_h, c0, h0, resets, pool, recompute) -> hidden states (B, T, H),
    c_T (B, H).

    x (T, B, E); w_mx (H, E), w_x (4H, E), w_mh (H, H) and w_h (4H, H) are (outputs, inputs), their
    gates in the order i, f, o, u; resets is None or (B, T) bool, True where the state is zeroed
    before the token. With `recompute` nothing is kept for backward, which computes forward again.
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
        recompute: bool,
    ) -> tuple[Tensor, Tensor]:
        forward, _ = _GPU if x.is_cuda else _CPU
        weights = (w_mx, w_x, bias, w_mh, w_h)
        pending = any(ctx.needs_input_grad) and not recompute
        hidden, c_last, kept = forward(x, weights, c0, h0, resets, pool, pending)
        ctx.kept = None if recompute else kept
        ctx.resets, ctx.pool = resets, pool
        ctx.save_for_backward(x, *weights, c0, h0)
        return hidden, c_last

    @staticmethod
    def backward(ctx: Any, d_hidden: Tensor, d_c_last: Tensor) -> Any:  # type: ignore[override]
        x, *weights, c0, h0 = ctx.saved_tensors
        forward, backward = _GPU if x.is_cuda else _CPU
        kept = ctx.kept
        if kept is None:
            *_, kept = forward(x, tuple(weights), c0, h0, ctx.resets, ctx.pool, True)
        d = backward(kept, x, tuple(weights), d_hidden, d_c_last)
        return (*d, None, None, None)
