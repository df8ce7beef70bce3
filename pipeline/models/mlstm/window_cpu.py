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

_CHUNK_STEPS = 16
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


class _Chunk:
    """Working memory of n steps in a row, taken again by chunk after chunk."""

    def __init__(self, n: int, x: Tensor, hidden: int) -> None:
        self.n, (_, lanes, size) = n, x.shape
        self.operand = x.new_ones(n, hidden + size + 1, lanes)  # [m; x; 1]
        self.m = self.operand[:, :hidden]

    def fill(self, x: Tensor, w_mx: Tensor, span: range) -> None:
        """Take the inputs of the steps, and their products with W_mx."""
        steps, hidden = x[span.start : span.stop], len(w_mx)
        self.operand[:, hidden:-1] = steps.transpose(1, 2)
        self.x = steps.reshape(-1, x.shape[2])  # (n * B, E)
        self.mx = product(w_mx, self.x).view(hidden, self.n, -1)  # (H, n, B)


class _Gradients:
    """Gradients of the steps of a chunk, and where operands are packed for a product over them."""

    def __init__(self, n: int, x: Tensor, hidden: int) -> None:
        lanes, size = x.shape[1:]
        self.z = x.new_empty(n, 4 * hidden, lanes)
        self.mh = x.new_empty(n, hidden, lanes)
        self.mx = x.new_empty(hidden, n, lanes)
        self.x = x.new_empty(size, n, lanes)
        self._left = x.new_empty(4 * hidden, n, lanes)
        self._right = x.new_empty(hidden + size + 1, n, lanes)

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """The sum over steps of left @ right.T, for (n, rows, B) each: one product."""
        left = self._left[: left.shape[1]].copy_(left.transpose(0, 1))
        right = self._right[: right.shape[1]].copy_(right.transpose(0, 1))
        return product(left.flatten(1), right.flatten(1))


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
    kept, buffers = pool.take((steps, lanes, hidden), x, keep, pending)
    w_z = torch.cat([w_h, w_x, bias.unsqueeze(1)], dim=1)
    w_z[3 * hidden :] *= (
        2  # tanh(z) = 2 sigmoid(2 z) - 1, and torch's tanh takes many times as long
    )
    out = x.new_empty(lanes, steps, hidden)
    buffers.c[0], buffers.h[0] = c0.t(), h0.t()
    _mask(buffers.h[0], keep[0])
    scratch = torch.empty_like(buffers.c[0])
    # One view each for all steps at once: made step by step they take as long as the arithmetic.
    i, f, o, u = (gate.unbind() for gate in buffers.gates.chunk(4, dim=1))
    gates, mh, c, h = (buffer.unbind() for buffer in buffers)
    h_rows, out_rows = buffers.h.transpose(1, 2).unbind(), out.unbind(1)
    chunk: _Chunk | None = None
    for span in _spans(steps):
        if chunk is None or chunk.n != len(span):
            chunk = _Chunk(len(span), x, hidden)
        chunk.fill(x, w_mx, span)
        mx, m, operand = chunk.mx.unbind(1), chunk.m.unbind(), chunk.operand.mT.unbind()
        for k, t in enumerate(span):
            mh[t].copy_(product(w_mh, h_rows[t]))
            torch.mul(mx[k], mh[t], out=m[k])
            torch.sigmoid(product(w_z, operand[k]), out=gates[t])
            u[t].mul_(2.0).sub_(1.0)
            torch.mul(f[t], _masked(c[t], keep[t]), out=c[t + 1])
            c[t + 1].addcmul_(i[t], u[t])
            torch.mul(o[t], _tanh(c[t + 1], out=scratch), out=h[t + 1])
            out_rows[t].copy_(h_rows[t + 1])
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
    d_out_rows, mh = d_out.unbind(1), buffers.mh.unbind()
    chunk: _Chunk | None = None
    for span in reversed(_spans(steps)):
        if chunk is None or chunk.n != len(span):
            chunk, d = _Chunk(len(span), x, hidden), _Gradients(len(span), x, hidden)
        chunk.fill(x, w_mx, span)
        d_z, d_mx, d_mh, d_x_steps = d.z.unbind(), d.mx.unbind(1), d.mh.unbind(), d.x.unbind(1)
        mx = chunk.mx.unbind(1)
        for k, t in reversed(list(enumerate(span))):
            d_h.add_(d_out_rows[t].t())
            _gates_backward(buffers, t, keep[t], d_h, d_c, d_z[k], scratch)
            d_m, d_input = product(into, d_z[k].t()).split([hidden, x.shape[2]])
            d_x_steps[k].copy_(d_input)
            torch.mul(d_m, mh[t], out=d_mx[k])
            torch.mul(d_m, mx[k], out=d_mh[k])
            d_h = product(into_h, d_mh[k].t())
            _mask(d_h, keep[t])
        steps_here = slice(span.start, span.stop)
        torch.mul(chunk.mx.transpose(0, 1), buffers.mh[steps_here], out=chunk.m)
        d_w_z += d.product(d.z, chunk.operand)
        d_w_mh += d.product(d.mh, buffers.h[steps_here])
        d_w_mx += product(d.mx.flatten(1), chunk.x.t())
        d.x += product(into_x, d.mx.flatten(1).t()).view_as(d.x)
        d_x[steps_here] = d.x.permute(1, 2, 0)
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
    gates, hidden = buffers.gates[t], len(d_h)
    i, f, o, u = gates.chunk(4)
    d_i, d_f, d_o, d_u = d_z.chunk(4)
    tanh_c = _tanh(buffers.c[t + 1], out=scratch[0])
    torch.mul(d_h, tanh_c, out=d_o)
    d_c.add_(_tanh_backward(d_h.mul_(o), tanh_c, grad_input=scratch[1]))
    torch.mul(d_c, u, out=d_i)
    torch.mul(d_c, _masked(buffers.c[t], keep), out=d_f)
    torch.mul(d_c, i, out=d_u)
    d_sigmoids = d_z[: 3 * hidden]
    _sigmoid_backward(d_sigmoids, gates[: 3 * hidden], grad_input=d_sigmoids)
    _tanh_backward(d_u, u, grad_input=d_u)
    d_c.mul_(f)
    _mask(d_c, keep)


def _tanh(values: Tensor, out: Tensor) -> Tensor:
    torch.add(values, values, out=out)
    return out.sigmoid_().mul_(2.0).sub_(1.0)


def _spans(steps: int) -> list[range]:
    edges = range(0, steps, _CHUNK_STEPS)
    return [range(first, min(first + _CHUNK_STEPS, steps)) for first in edges]


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
