"""The window on a processor: as near as can be to the time of its matrix products.

Everything lies feature-major, (features, lanes): weights then stand on the left of every product,
which is the faster way round, and each gate is one contiguous block. The input joins the recurrent
product, [W_h W_x b] [m; x; 1], which costs the same arithmetic as a product of its own for the
whole window and saves writing and reading its result. Weight gradients are formed once per
chunk of steps, while what they need is still in cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .products import product

Weights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # w_mx, w_x, bias, w_mh, w_h

_CHUNK_TOKENS = 2048  # lanes times steps
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class _Buffers(NamedTuple):
    """What forward leaves for backward, of T steps of B lanes."""

    gates: Tensor  # (T, 4H, B): i, f, o, u after activation
    mh: Tensor  # (T, H, B): h Wmh
    c: Tensor  # (T + 1, H, B)
    h: Tensor  # (T + 1, H, B): zeroed where a reset follows


class _Kept:
    """The claim of one window on its buffers."""

    def __init__(self, buffers: _Buffers, keep: list[Tensor | None], pending: bool) -> None:
        self.buffers: _Buffers | None = buffers
        self.keep = keep  # for every step and the end, None or a row of 0 where a reset lies
        self.pending = pending  # backward is still to come


class Pool:
    """The buffers of a layer's last window.

    A fresh gigabyte costs as much as a tenth of the products, page by page, so the next window of
    the same shape takes them again once their backward is done.
    """

    def __init__(self) -> None:
        self._last: _Kept | None = None

    def take(
        self, shape: tuple[int, int, int], like: Tensor, keep: list[Tensor | None], pending: bool
    ) -> tuple[_Kept, _Buffers]:
        """Buffers for (T, B, H) that no other window waits for."""
        steps, lanes, hidden = shape
        buffers = None if self._last is None or self._last.pending else self._last.buffers
        fits = buffers is not None and buffers.h.shape == (steps + 1, hidden, lanes)
        if buffers is None or not fits or buffers.h.dtype != like.dtype:
            sizes = (steps, 4 * hidden), (steps, hidden), (steps + 1, hidden), (steps + 1, hidden)
            buffers = _Buffers(*(like.new_empty(*size, lanes) for size in sizes))
        elif self._last is not None:
            self._last.buffers = None  # whoever goes backward through it again is told
        self._last = _Kept(buffers, keep, pending)
        return self._last, buffers


class _Chunk(NamedTuple):
    """A few steps of the window: their inputs (n * B, E), W_mx x as (H, n, B), and the operand
    [m; x; 1] as (n, H + E + 1, B), its m not yet filled in."""

    x: Tensor
    mx: Tensor
    operand: Tensor


def forward(
    x: Tensor,
    weights: Weights,
    c0: Tensor,
    h0: Tensor,
    resets: Tensor | None,
    pool: Pool,
    pending: bool,
) -> tuple[Tensor, Tensor, _Kept]:
    """Hidden states (B, T, H), c_T (B, H), and what `backward` needs where it is `pending`."""
    w_mx, w_x, bias, w_mh, w_h = weights
    steps, lanes, hidden = *x.shape[:2], len(w_mh)
    keep = _keep(resets, steps, x.dtype)
    kept, (gates, mh, c, h) = pool.take((steps, lanes, hidden), x, keep, pending)
    w_z = torch.cat([w_h, w_x, bias.unsqueeze(1)], dim=1)
    w_z[3 * hidden :] *= 2  # tanh(z) = 2 sigmoid(2 z) - 1, and torch's tanh takes many times as long
    out = x.new_empty(lanes, steps, hidden)
    c[0], h[0] = c0.t(), h0.t()
    _mask(h[0], keep[0])
    scratch = torch.empty_like(c[0])
    for span in _spans(steps, lanes):
        chunk = _chunk(x, w_mx, hidden, span)
        for k, t in enumerate(span):
            mh[t] = product(w_mh, h[t].t())
            operand = chunk.operand[k]
            torch.mul(chunk.mx[:, k], mh[t], out=operand[:hidden])
            torch.sigmoid(product(w_z, operand.t()), out=gates[t])
            i, f, o, u = gates[t].chunk(4)
            u.mul_(2).sub_(1)
            torch.mul(f, _masked(c[t], keep[t]), out=c[t + 1])
            c[t + 1].addcmul_(i, u)
            torch.mul(o, _tanh(c[t + 1], out=scratch), out=h[t + 1])
            out[:, t] = h[t + 1].t()
            _mask(h[t + 1], keep[t + 1])
    return out, c[-1].t().contiguous(), kept


def backward(
    kept: _Kept, x: Tensor, weights: Weights, d_out: Tensor, d_c_last: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of x, the five weights, c0 and h0. RuntimeError when a later window has the
    buffers."""
    buffers, keep = kept.buffers, kept.keep
    if buffers is None:
        raise RuntimeError(
            "backward through this window has run before, and a later window has taken its "
            "buffers: go backward again before the next forward"
        )
    w_mx, w_x, _, w_mh, w_h = weights
    steps, lanes, hidden = *x.shape[:2], len(w_mh)
    into = torch.cat([w_h, w_x], dim=1).t().contiguous()  # of d_z: to m and x
    into_h, into_x = w_mh.t().contiguous(), w_mx.t().contiguous()
    d_x = torch.empty_like(x)
    d_w_z = w_h.new_zeros(4 * hidden, into.shape[0] + 1)
    d_w_mx, d_w_mh = torch.zeros_like(w_mx), torch.zeros_like(w_mh)
    d_c, d_h = d_c_last.t().contiguous(), x.new_zeros(hidden, lanes)
    scratch = torch.empty_like(d_c), torch.empty_like(d_c)
    for span in reversed(_spans(steps, lanes)):
        chunk, n = _chunk(x, w_mx, hidden, span), len(span)
        d_z, d_mh = x.new_empty(n, 4 * hidden, lanes), x.new_empty(n, hidden, lanes)
        d_mx, d_input = x.new_empty(hidden, n, lanes), x.new_empty(x.shape[2], n, lanes)
        for k, t in reversed(list(enumerate(span))):
            d_h.add_(d_out[:, t].t())
            _gates_backward(buffers, t, keep[t], d_h, d_c, d_z[k], scratch)
            d_operand = product(into, d_z[k].t())
            d_m, d_input[:, k] = d_operand[:hidden], d_operand[hidden:]
            torch.mul(d_m, buffers.mh[t], out=d_mx[:, k])
            torch.mul(d_m, chunk.mx[:, k], out=d_mh[k])
            d_h = product(into_h, d_mh[k].t())
            _mask(d_h, keep[t])
        steps_of_chunk = slice(span.start, span.stop)
        torch.mul(chunk.mx.transpose(0, 1), buffers.mh[steps_of_chunk], out=chunk.operand[:, :hidden])
        d_w_z += product(_packed(d_z), _packed(chunk.operand))
        d_w_mh += product(_packed(d_mh), _packed(buffers.h[steps_of_chunk]))
        d_w_mx += product(d_mx.flatten(1), chunk.x.t())
        d_input += product(into_x, d_mx.flatten(1).t()).view_as(d_input)
        d_x[steps_of_chunk] = d_input.permute(1, 2, 0)
    kept.pending = False
    d_w_h, d_w_x, d_bias = d_w_z.split([hidden, x.shape[2], 1], dim=1)
    return d_x, d_w_mx, d_w_x, d_bias.squeeze(1), d_w_mh, d_w_h, d_c.t(), d_h.t()


def _gates_backward(
    buffers: _Buffers,
    t: int,
    keep: Tensor | None,
    d_h: Tensor,
    d_c: Tensor,
    d_z: Tensor,
    scratch: tuple[Tensor, Tensor],
) -> None:
    """From the gradients of h_t and c_t to that of z_t, in `d_z`, and of the c before, in `d_c`.
    `d_h` is used up."""
    hidden = len(d_h)
    i, f, o, u = buffers.gates[t].chunk(4)
    d_i, d_f, d_o, d_u = d_z.chunk(4)
    tanh_c = _tanh(buffers.c[t + 1], out=scratch[0])
    torch.mul(d_h, tanh_c, out=d_o)
    d_c.add_(_tanh_backward(d_h.mul_(o), tanh_c, grad_input=scratch[1]))
    torch.mul(d_c, u, out=d_i)
    torch.mul(d_c, _masked(buffers.c[t], keep), out=d_f)
    torch.mul(d_c, i, out=d_u)
    sigmoids = slice(0, 3 * hidden)
    _sigmoid_backward(d_z[sigmoids], buffers.gates[t][sigmoids], grad_input=d_z[sigmoids])
    _tanh_backward(d_u, u, grad_input=d_u)
    d_c.mul_(f)
    _mask(d_c, keep)


def _tanh(values: Tensor, out: Tensor) -> Tensor:
    torch.mul(values, 2, out=out)
    return out.sigmoid_().mul_(2).sub_(1)


def _spans(steps: int, lanes: int) -> list[range]:
    length = max(1, _CHUNK_TOKENS // lanes)
    return [range(first, min(first + length, steps)) for first in range(0, steps, length)]


def _chunk(x: Tensor, w_mx: Tensor, hidden: int, span: range) -> _Chunk:
    inputs = x[span.start : span.stop]
    n, lanes, size = inputs.shape
    rows = inputs.reshape(n * lanes, size)
    operand = x.new_empty(n, hidden + size + 1, lanes)
    operand[:, hidden:-1] = inputs.transpose(1, 2)
    operand[:, -1] = 1
    return _Chunk(rows, product(w_mx, rows).view(hidden, n, lanes), operand)


def _packed(steps: Tensor) -> Tensor:
    """(n, rows, B) as (rows, n * B)."""
    return steps.transpose(0, 1).flatten(1)


def _keep(resets: Tensor | None, steps: int, dtype: torch.dtype) -> list[Tensor | None]:
    """For every step and the end, None, or (B,) with 0 where the state is zeroed before it."""
    if resets is None:
        return [None] * (steps + 1)
    keep, any_reset = (~resets).t().to(dtype), resets.any(dim=0).tolist()
    return [row if found else None for row, found in zip(keep, any_reset, strict=True)] + [None]


def _mask(values: Tensor, keep: Tensor | None) -> None:
    if keep is not None:
        values.mul_(keep)


def _masked(values: Tensor, keep: Tensor | None) -> Tensor:
    return values if keep is None else values * keep
