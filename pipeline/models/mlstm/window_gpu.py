"""The window on a GPU: few launches, each of them large.

Everything lies step by step with lanes as rows, (T, B, features). Input projections and weight
gradients are one product each for the whole window; a step is its two recurrent products and one
kernel after each (`kernels`). Buffers are used up in place: pre-activations become gates, and
gates become their gradients. CUDA graphs (`graphs`) replay windows whose shape comes back.
"""

from __future__ import annotations

import os
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .graphs import Replay, WindowGraphs
from .kernels import gates_backward, gates_forward, multiply_backward
from .window_cpu import Pool, Weights


class Buffers(NamedTuple):
    """What forward leaves for backward, of T steps of B lanes."""

    gates: Tensor  # (T, B, 4H): i, f, o, u after activation
    mx: Tensor  # (T, B, H)
    mh: Tensor  # (T, B, H)
    c: Tensor  # (T + 1, B, H), fp32 whatever the others are: it sums over all steps
    h: Tensor  # (T + 1, B, H): zeroed where a reset follows
    resets: Tensor | None  # (T + 1, B) bytes, the last row zero


class _Kept:
    """The buffers of a window that was not replayed."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers: Buffers | None = buffers

    def backward(
        self, x: Tensor, weights: Weights, d_out: Tensor, d_c_last: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients; RuntimeError the second time."""
        buffers, self._buffers = self._buffers, None
        if buffers is None:
            raise RuntimeError("backward through this window has run before and used up its gates")
        return backward_through(buffers, x, weights, d_out, d_c_last)


# Of a step forward. Beyond, a GPU works several times longer on it than a processor takes to launch
# it, and a captured window would only hold memory.
_GRAPHED_FLOP = 1e11

_GRAPHS: WeakKeyDictionary[Pool, WindowGraphs] = WeakKeyDictionary()  # one of them for each layer


def forward(
    x: Tensor,
    weights: Weights,
    c0: Tensor,
    h0: Tensor,
    resets: Tensor | None,
    pool: Pool,
    pending: bool,
) -> tuple[Tensor, Tensor, _Kept | Replay]:
    """Hidden states (B, T, H), c_T (B, H), and what `backward` needs where it is `pending`. `pool`
    only tells layers apart: here memory is free to take again."""
    with torch.cuda.device_of(x):  # which is where Triton launches
        # Without a backward to come the shapes are an evaluation's or a generation's: they vary.
        if pending and x.is_cuda and _is_graphed(*c0.shape):
            graphs = _GRAPHS.setdefault(pool, WindowGraphs(forward_through, backward_through))
            replay = graphs.claim((x, *weights, c0, h0, resets))
            if replay is not None:
                return *replay.forward((x, *weights, c0, h0, resets)), replay
        hidden, c_last, buffers = forward_through(x, weights, c0, h0, resets)
        return hidden, c_last, _Kept(buffers)


def _is_graphed(lanes: int, hidden: int) -> bool:
    flop = 10 * lanes * hidden**2
    return flop < _GRAPHED_FLOP and os.environ.get("LM_CUDA_GRAPHS") != "0"


def backward(
    kept: _Kept | Replay, x: Tensor, weights: Weights, d_out: Tensor, d_c_last: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of x, the five weights, c0 and h0. RuntimeError when it has run before."""
    with torch.cuda.device_of(x):
        return kept.backward(x, weights, d_out, d_c_last)


def forward_through(
    x: Tensor, weights: Weights, c0: Tensor, h0: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor, Buffers]:
    """Hidden states (B, T, H), c_T (B, H) and the buffers that `backward_through` uses up."""
    w_mx, w_x, bias, w_mh, w_h = weights
    steps, lanes, hidden = *x.shape[:2], len(w_mh)
    x_rows, into_mh, into_z = x.flatten(0, 1), w_mh.contiguous().t(), w_h.contiguous().t()
    mx = torch.mm(x_rows, w_mx.t()).view(steps, lanes, hidden)
    z = torch.addmm(bias, x_rows, w_x.t()).view(steps, lanes, 4 * hidden)
    c = x.new_empty(steps + 1, lanes, hidden, dtype=torch.float32)
    h, mh, m = x.new_empty(steps + 1, lanes, hidden), torch.empty_like(mx), torch.empty_like(mx[0])
    out = x.new_empty(lanes, steps, hidden)
    zeroed = _zeroed(resets)
    c[0], h[0] = c0, h0
    if zeroed is not None:
        h[0].masked_fill_(zeroed[0].bool().unsqueeze(1), 0)
    for t in range(steps):
        torch.mm(h[t], into_mh, out=mh[t])
        torch.mul(mx[t], mh[t], out=m)
        z[t].addmm_(m, into_z)
        gates_forward(z[t], c[t], c[t + 1], h[t + 1], out[:, t], *_around(zeroed, t))
    return out, c[-1].to(x.dtype), Buffers(z, mx, mh, c, h, zeroed)


def backward_through(
    buffers: Buffers, x: Tensor, weights: Weights, d_out: Tensor, d_c_last: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of x, the five weights, c0 and h0; `buffers` are written over."""
    w_mx, w_x, _, w_mh, w_h = weights
    w_mh, w_h = w_mh.contiguous(), w_h.contiguous()
    gates, mx, mh, c, h, zeroed = buffers
    d_out = d_out if d_out.stride(2) == 1 else d_out.contiguous()
    d_c = torch.empty_like(c[0]).copy_(d_c_last)
    d_m, d_h = torch.empty_like(mx), None
    for t in reversed(range(len(x))):
        around = _around(zeroed, t)
        gates_backward(gates[t], c[t], c[t + 1], d_h, d_out[:, t], d_c, *around)
        torch.mm(gates[t], w_h, out=d_m[t])
        multiply_backward(mx[t], mh[t], d_m[t])
        d_h = torch.mm(d_m[t], w_mh, out=d_h)
    assert d_h is not None
    if zeroed is not None:
        d_h.masked_fill_(zeroed[0].bool().unsqueeze(1), 0)
    # By now the buffers hold gradients of pre-activations, that of mx, m, and that of mh.
    d_z, d_mx, m, d_mh = (rows.flatten(0, 1) for rows in (gates, mx, mh, d_m))
    x_rows = x.flatten(0, 1)
    d_x = torch.mm(d_z, w_x).addmm_(d_mx, w_mx).view_as(x)
    d_w_mx, d_w_x, d_bias = torch.mm(d_mx.t(), x_rows), torch.mm(d_z.t(), x_rows), d_z.sum(0)
    d_w_mh, d_w_h = torch.mm(d_mh.t(), h[:-1].flatten(0, 1)), torch.mm(d_z.t(), m)
    return d_x, d_w_mx, d_w_x, d_bias, d_w_mh, d_w_h, d_c.to(x.dtype), d_h


def _zeroed(resets: Tensor | None) -> Tensor | None:
    """Resets (B, T) as bytes, step by step, and a row of zeros where the next window begins."""
    if resets is None:
        return None
    return torch.nn.functional.pad(resets.t().to(torch.uint8), (0, 0, 0, 1)).contiguous()


def _around(zeroed: Tensor | None, t: int) -> tuple[Tensor | None, Tensor | None]:
    """The rows of this step and of the next."""
    return (None, None) if zeroed is None else (zeroed[t], zeroed[t + 1])
