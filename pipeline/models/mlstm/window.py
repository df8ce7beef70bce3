"""One window of the multiplicative LSTM recurrence, forward and backward written by hand.

Autograd over the time loop would keep a node for every small operation and form weight gradients
step by step. Here the loop keeps only gates, products and states; the two weight gradients are one
product each over the whole window, after the loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class MLSTMWindow(torch.autograd.Function):
    """(mx, zx, w_mh, w_h, c0, h0, keep) -> hidden states (T, B, H), c_T (B, H).

    mx (T, B, H) and zx (T, B, 4H) are the products with the input, bias included; w_mh (H, H) and
    w_h (4H, H) are (outputs, inputs); keep is None or (T, B, 1), 0 where the state is zeroed first.
    Gates lie in the order i, f, o, u.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        mx: Tensor,
        zx: Tensor,
        w_mh: Tensor,
        w_h: Tensor,
        c0: Tensor,
        h0: Tensor,
        keep: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        steps, rows, hidden = mx.shape
        gates = torch.empty_like(zx)
        mh = torch.empty_like(mx)  # h_{t-1} Wmh
        m = torch.empty_like(mx)
        c = mx.new_empty(steps + 1, rows, hidden)
        h = mx.new_empty(steps + 1, rows, hidden)
        c[0], h[0] = c0, h0
        w_mh_t, w_h_t = w_mh.t(), w_h.t()
        for t in range(steps):
            c_in, h_in = _kept(c, h, keep, t)
            torch.mm(h_in, w_mh_t, out=mh[t])
            torch.mul(mx[t], mh[t], out=m[t])
            gate = torch.addmm(zx[t], m[t], w_h_t, out=gates[t])
            gate[:, : 3 * hidden].sigmoid_()
            gate[:, 3 * hidden :].tanh_()
            i, f, o, u = gate.chunk(4, dim=1)
            torch.mul(f, c_in, out=c[t + 1])
            c[t + 1].addcmul_(i, u)
            torch.tanh(c[t + 1], out=h[t + 1])
            h[t + 1].mul_(o)
        ctx.save_for_backward(mx, mh, m, gates, c, h, w_mh, w_h, keep)
        # A copy: what is kept for backward must not be changed by the caller.
        return h[1:].clone(), c[-1].clone()

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_c_last: Tensor) -> Any:  # type: ignore[override]
        mx, mh, m, gates, c, h, w_mh, w_h, keep = ctx.saved_tensors
        steps, rows, hidden = mx.shape
        d_gates = torch.empty_like(gates)
        d_mx = torch.empty_like(mx)
        d_mh = torch.empty_like(mx)
        d_h = torch.zeros_like(h[0])
        d_c = d_c_last.clone()
        d_m = torch.empty_like(d_h)
        for t in reversed(range(steps)):
            i, f, o, u = gates[t].chunk(4, dim=1)
            di, df, do, du = d_gates[t].chunk(4, dim=1)
            d_h += d_out[t]
            tanh_c = torch.tanh(c[t + 1])
            # d tanh(c) and the sigmoid's s(1 - s), written so that each is one pass.
            torch.mul(d_h * tanh_c, o - o * o, out=do)
            d_c.addcmul_(d_h * o, 1 - tanh_c * tanh_c)
            torch.mul(d_c * u, i - i * i, out=di)
            c_in, _ = _kept(c, h, keep, t)
            torch.mul(d_c * c_in, f - f * f, out=df)
            torch.mul(d_c * i, 1 - u * u, out=du)
            d_c.mul_(f)
            torch.mm(d_gates[t], w_h, out=d_m)
            torch.mul(d_m, mh[t], out=d_mx[t])
            torch.mul(d_m, mx[t], out=d_mh[t])
            torch.mm(d_mh[t], w_mh, out=d_h)
            if keep is not None:
                d_c.mul_(keep[t])
                d_h.mul_(keep[t])
        d_w_h = d_gates.flatten(0, 1).t() @ m.flatten(0, 1)
        h_in = h[:-1] if keep is None else h[:-1] * keep
        d_w_mh = d_mh.flatten(0, 1).t() @ h_in.flatten(0, 1)
        return d_mx, d_gates, d_w_mh, d_w_h, d_c, d_h, None


def _kept(c: Tensor, h: Tensor, keep: Tensor | None, t: int) -> tuple[Tensor, Tensor]:
    """The state that step t starts from: zeroed where a reset lies."""
    return (c[t], h[t]) if keep is None else (c[t] * keep[t], h[t] * keep[t])
