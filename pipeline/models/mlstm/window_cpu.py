"""The window on a processor: as near as can be to the time of its matrix products.

Everything lies feature-major, (features, lanes): weights then stand on the left of every product,
which is the faster way round, and each gate is one contiguous block. The input joins the recurrent
product, [W_h W_x b] [m; x; 1], which costs the same arithmetic as a product of its own for the
whole window and saves writing and reading its result. What the recurrence does not force to be
done step by step is done for a chunk of steps at once, while it is still in cache.
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

    gates: Tensor  # (T, 4, H, B): sigmoids of z_i, z_f, 2 z_u, z_o
    mh: Tensor  # (T, H, B): h Wmh
    c: Tensor  # (T + 1, H, B)
    h: Tensor  # (T + 1, H, B)


class _Kept:
    """The claim of one window on its buffers."""

    def __init__(self, buffers: _Buffers, keep: list[Tensor | None], pending: bool) -> None:
        self.buffers: _Buffers | None = buffers
        self.keep = keep  # for every step None, or a row of 0 where a reset lies
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
            state = steps + 1, hidden, lanes
            sizes = (steps, 4, hidden, lanes), (steps, hidden, lanes), state, state
            buffers = _Buffers(*map(like.new_empty, sizes))
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

    def fill(self, x: Tensor, w_mx: Tensor, span: slice) -> None:
        """Take the inputs of the steps, and their products with W_mx."""
        steps, hidden = x[span], len(w_mx)
        self.operand[:, hidden:-1] = steps.transpose(1, 2)
        self.x = steps.reshape(-1, x.shape[2])  # (n * B, E)
        self.mx = product(w_mx, self.x).view(hidden, self.n, -1)  # (H, n, B)


class _Slopes:
    """How the gates and c of each step of a chunk answer to what comes from above; and, step by
    step, the gradients themselves."""

    def __init__(self, n: int, x: Tensor, hidden: int) -> None:
        lanes, size = x.shape[1:]
        self.z = x.new_empty(n, 4, hidden, lanes)
        self.c = x.new_empty(n, hidden, lanes)  # of c by way of h
        self.mh = x.new_empty(n, hidden, lanes)
        self.mx = x.new_empty(hidden, n, lanes)
        self.out = x.new_empty(n, hidden, lanes)  # from above
        self._tanh_c, self._u = torch.empty_like(self.c), torch.empty_like(self.c)
        self._left = x.new_empty(4 * hidden, n, lanes)
        self._right = x.new_empty(hidden + size + 1, n, lanes)

    def fill(self, buffers: _Buffers, keep: list[Tensor | None], span: slice) -> None:
        """Take the steps of `span`: all that does not depend on a later step."""
        gates, c = buffers.gates[span], buffers.c[1:][span]
        c_before = _masked_steps(buffers.c, keep, span)
        i, f, s, o = gates.unbind(1)
        u = torch.mul(s, 2.0, out=self._u).sub_(1.0)
        tanh_c = torch.mul(c, 2.0, out=self._tanh_c).sigmoid_().mul_(2.0).sub_(1.0)
        d_i, d_f, d_u, d_o = self.z.unbind(1)
        _sigmoid_backward(u, i, grad_input=d_i)
        _sigmoid_backward(c_before, f, grad_input=d_f)
        _tanh_backward(i, u, grad_input=d_u)
        _sigmoid_backward(tanh_c, o, grad_input=d_o)
        _tanh_backward(o, tanh_c, grad_input=self.c)

    def packed(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """(n, rows, B) each as (rows, n * B), for one product over all steps."""
        left = self._left[: left.shape[1]].copy_(left.transpose(0, 1))
        right = self._right[: right.shape[1]].copy_(right.transpose(0, 1))
        return left.flatten(1), right.flatten(1)


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
    w_z = _inner_order(torch.cat([w_h, w_x, bias.unsqueeze(1)], dim=1))
    w_z[2 * hidden : 3 * hidden] *= 2  # u = tanh(z) = 2 sigmoid(2 z) - 1: torch's tanh is slow
    out = x.new_empty(lanes, steps, hidden)
    buffers.c[0], buffers.h[0] = c0.t(), h0.t()
    tanh_c = torch.empty_like(buffers.c[0])
    # One view each for all steps at once: made step by step they take as long as the arithmetic.
    i, f, s, o = (gate.unbind() for gate in buffers.gates.unbind(1))
    z, mh, c, h = buffers.gates.flatten(1, 2).unbind(), *(b.unbind() for b in buffers[1:])
    chunk: _Chunk | None = None
    for span in _spans(steps):
        if chunk is None or chunk.n != span.stop - span.start:
            chunk = _Chunk(span.stop - span.start, x, hidden)
        chunk.fill(x, w_mx, span)
        mx, m, operand = chunk.mx.unbind(1), chunk.m.unbind(), chunk.operand.mT.unbind()
        for k, t in enumerate(range(span.start, span.stop)):
            mh[t].copy_(product(w_mh, _masked(h[t], keep[t]).t()))
            torch.mul(mx[k], mh[t], out=m[k])
            torch.sigmoid(product(w_z, operand[k]), out=z[t])
            torch.mul(f[t], _masked(c[t], keep[t]), out=c[t + 1])
            c[t + 1].addcmul_(i[t], s[t], value=2.0).sub_(i[t])
            torch.add(c[t + 1], c[t + 1], out=tanh_c).sigmoid_().mul_(2.0).sub_(1.0)
            torch.mul(o[t], tanh_c, out=h[t + 1])
        out[:, span] = buffers.h[1:][span].permute(2, 0, 1)
    # A copy even of a single lane, whose transpose is contiguous as it is: buffers are used again.
    return out, c[-1].t().clone(memory_format=torch.contiguous_format), kept


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
    into_m, into_h = _inner_order(w_h).t().contiguous(), w_mh.t().contiguous()
    into_x_by_z, into_x_by_m = _inner_order(w_x).t().contiguous(), w_mx.t().contiguous()
    d_x = torch.empty_like(x)
    d_w_z = w_h.new_zeros(4 * hidden, hidden + x.shape[2] + 1)
    d_w_mx, d_w_mh = torch.zeros_like(w_mx), torch.zeros_like(w_mh)
    d_c, d_h = d_c_last.t().contiguous(), x.new_zeros(hidden, lanes)
    f, mh = buffers.gates[:, 1].unbind(), buffers.mh.unbind()
    chunk: _Chunk | None = None
    for span in reversed(_spans(steps)):
        if chunk is None or chunk.n != span.stop - span.start:
            chunk = _Chunk(span.stop - span.start, x, hidden)
            d = _Slopes(chunk.n, x, hidden)
        chunk.fill(x, w_mx, span)
        d.fill(buffers, keep, span)
        d.out.copy_(d_out[:, span].permute(1, 2, 0))
        d_z, d_ifu, d_o = d.z.flatten(1, 2).mT.unbind(), d.z[:, :3].unbind(), d.z[:, 3].unbind()
        mx, d_mx, d_mh = chunk.mx.unbind(1), d.mx.unbind(1), d.mh.unbind()
        for k in reversed(range(chunk.n)):
            t = span.start + k
            d_h.add_(d.out[k])
            d_c.addcmul_(d_h, d.c[k])
            d_o[k].mul_(d_h)
            d_ifu[k].mul_(d_c)
            d_c.mul_(f[t])
            d_m = product(into_m, d_z[k])
            torch.mul(d_m, mh[t], out=d_mx[k])
            torch.mul(d_m, mx[k], out=d_mh[k])
            d_h = product(into_h, d_mh[k].t())
            _mask(d_h, keep[t])
            _mask(d_c, keep[t])
        torch.mul(chunk.mx.transpose(0, 1), buffers.mh[span], out=chunk.m)
        by_z, operand = d.packed(d.z.flatten(1, 2), chunk.operand)
        d_w_z += product(by_z, operand)
        d_input = product(into_x_by_z, by_z.t())
        d_input += product(into_x_by_m, d.mx.flatten(1).t())
        d_x[span] = d_input.view(-1, chunk.n, lanes).permute(1, 2, 0)
        d_w_mx += product(d.mx.flatten(1), chunk.x.t())
        d_w_mh += product(*d.packed(d.mh, _masked_steps(buffers.h, keep, span)))
    kept.pending = False
    d_w_h, d_w_x, d_bias = _outer_order(d_w_z).split([hidden, x.shape[2], 1], dim=1)
    return d_x, d_w_mx, d_w_x, d_bias.squeeze(1), d_w_mh, d_w_h, d_c.t(), d_h.t()


def _inner_order(rows: Tensor) -> Tensor:
    """A copy with the blocks i, f, o, u of its rows as i, f, u, o: the gates that c answers to
    then lie side by side."""
    i, f, o, u = rows.chunk(4)
    return torch.cat([i, f, u, o])


_outer_order = _inner_order  # the same two blocks change places


def _spans(steps: int) -> list[slice]:
    edges = range(0, steps, _CHUNK_STEPS)
    return [slice(first, min(first + _CHUNK_STEPS, steps)) for first in edges]


def _keep(resets: Tensor | None, steps: int, dtype: torch.dtype) -> list[Tensor | None]:
    """For every step None, or (B,) with 0 where the state is zeroed before it."""
    if resets is None:
        return [None] * steps
    keep, any_reset = (~resets).t().to(dtype), resets.any(dim=0).tolist()
    return [row if found else None for row, found in zip(keep, any_reset, strict=True)]


def _mask(values: Tensor, keep: Tensor | None) -> None:
    if keep is not None:
        values.mul_(keep)


def _masked(values: Tensor, keep: Tensor | None) -> Tensor:
    return values if keep is None else values * keep


def _masked_steps(states: Tensor, keep: list[Tensor | None], span: slice) -> Tensor:
    """The states that the steps of `span` start from."""
    rows = keep[span]
    if all(row is None for row in rows):
        return states[span]
    found = states[span].clone()
    for state, row in zip(found, rows, strict=True):
        _mask(state, row)
    return found
