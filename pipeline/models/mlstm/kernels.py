"""What lies between the matrix products of one step on a GPU, one launch each.

Tensors are those of one step, (B, H) or (B, 4H), contiguous except where a stride between rows is
given. Values are in the dtype of the model, or in fp32 where it says so; arithmetic is in fp32.
`resets` and `resets_after` are (B,) bytes, not zero where the state is zeroed before this token and
before the next one, or None.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

# The file travels beside exported models, which run on processors without Triton.
try:
    import triton
    from triton import jit
    from triton import language as tl
except ImportError:
    triton = None

    def jit(kernel: Any) -> Any:  # type: ignore[no-redef]
        """Leave the kernel as it is: nothing launches it."""
        return kernel


_BLOCK = 1024  # elements of a program


def gates_forward(
    z: Tensor,
    c_before: Tensor,
    c: Tensor,
    h: Tensor,
    hidden: Tensor,
    resets: Tensor | None,
    resets_after: Tensor | None,
) -> None:
    """From pre-activations `z` (B, 4H) to gates, in place, and from c_{t-1} `c_before` to `c`, both
    fp32; h_t into `hidden`, rows at any stride, and into `h`, zeroed where the next token resets.
    """
    grid, size = _grid(c), c.shape[1]
    _gates_forward[grid](
        z, c_before, c, h, hidden, hidden.stride(0), resets, resets_after, size, BLOCK=_BLOCK
    )


def gates_backward(
    gates: Tensor,
    c_before: Tensor,
    c: Tensor,
    d_h: Tensor | None,
    d_hidden: Tensor,
    d_c: Tensor,
    resets: Tensor | None,
    resets_after: Tensor | None,
) -> None:
    """From `gates` (B, 4H) to the gradients of their pre-activations, and from the gradient of c_t
    to that of c_{t-1} in `d_c`, fp32, both in place. h_t's gradient is that of the next token,
    `d_h` or None for none, and that of the output, `d_hidden`, rows at any stride."""
    grid, size = _grid(c), c.shape[1]
    _gates_backward[grid](
        gates, c_before, c, d_h, d_hidden, d_hidden.stride(0), d_c, resets, resets_after, size,
        BLOCK=_BLOCK,
    )  # fmt: skip


def multiply_backward(mx: Tensor, mh: Tensor, d_m: Tensor) -> None:
    """From m = mx * mh and its gradient to the gradient of mx, m, and the gradient of mh: each in
    the place of the argument in its position."""
    _multiply_backward[_grid(mx)](mx, mh, d_m, mx.shape[1], BLOCK=_BLOCK)


def _grid(values: Tensor) -> tuple[int, int]:
    """A program for every block of a row."""
    if triton is None:
        raise RuntimeError("the mLSTM on a GPU needs triton: pip install triton")
    rows, size = values.shape
    return rows, triton.cdiv(size, _BLOCK)


@jit
def _gates_forward(  # type: ignore[no-untyped-def]
    z, c_before, c, h, hidden, hidden_stride, resets, resets_after, size, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    here, gate = row * size + column, z + row * 4 * size + column
    i = tl.sigmoid(tl.load(gate, inside).to(tl.float32))
    f = tl.sigmoid(tl.load(gate + size, inside).to(tl.float32))
    o = tl.sigmoid(tl.load(gate + 2 * size, inside).to(tl.float32))
    u = 2 * tl.sigmoid(2 * tl.load(gate + 3 * size, inside).to(tl.float32)) - 1  # tanh
    before = tl.load(c_before + here, inside)
    if resets is not None:
        before = tl.where(tl.load(resets + row) != 0, 0.0, before)
    c_here = f * before + i * u
    h_here = o * (2 * tl.sigmoid(2 * c_here) - 1)
    tl.store(gate, i, inside)
    tl.store(gate + size, f, inside)
    tl.store(gate + 2 * size, o, inside)
    tl.store(gate + 3 * size, u, inside)
    tl.store(c + here, c_here, inside)
    # A whole window's hidden states may pass 2^31 elements, and their rows lie far apart.
    tl.store(hidden + row.to(tl.int64) * hidden_stride + column, h_here, inside)
    if resets_after is not None:
        h_here = tl.where(tl.load(resets_after + row) != 0, 0.0, h_here)
    tl.store(h + here, h_here, inside)


@jit
def _gates_backward(  # type: ignore[no-untyped-def]
    gates, c_before, c, d_h, d_hidden, d_hidden_stride, d_c, resets, resets_after, size,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    here, gate = row * size + column, gates + row * 4 * size + column
    i = tl.load(gate, inside).to(tl.float32)
    f = tl.load(gate + size, inside).to(tl.float32)
    o = tl.load(gate + 2 * size, inside).to(tl.float32)
    u = tl.load(gate + 3 * size, inside).to(tl.float32)
    tanh_c = 2 * tl.sigmoid(2 * tl.load(c + here, inside)) - 1
    before = tl.load(c_before + here, inside)
    above = d_hidden + row.to(tl.int64) * d_hidden_stride + column
    d_h_here = tl.load(above, inside).to(tl.float32)
    if d_h is not None:
        later = tl.load(d_h + here, inside).to(tl.float32)
        if resets_after is not None:
            later = tl.where(tl.load(resets_after + row) != 0, 0.0, later)
        d_h_here += later
    d_c_here = tl.load(d_c + here, inside) + d_h_here * o * (1 - tanh_c * tanh_c)
    d_c_before = d_c_here * f
    if resets is not None:
        reset = tl.load(resets + row) != 0
        before = tl.where(reset, 0.0, before)
        d_c_before = tl.where(reset, 0.0, d_c_before)
    tl.store(gate, d_c_here * u * i * (1 - i), inside)
    tl.store(gate + size, d_c_here * before * f * (1 - f), inside)
    tl.store(gate + 2 * size, d_h_here * tanh_c * o * (1 - o), inside)
    tl.store(gate + 3 * size, d_c_here * i * (1 - u * u), inside)
    tl.store(d_c + here, d_c_before, inside)


@jit
def _multiply_backward(mx, mh, d_m, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    here = tl.program_id(0) * size + column
    mx_here = tl.load(mx + here, inside).to(tl.float32)
    mh_here = tl.load(mh + here, inside).to(tl.float32)
    d_m_here = tl.load(d_m + here, inside).to(tl.float32)
    tl.store(mx + here, d_m_here * mh_here, inside)
    tl.store(mh + here, mx_here * mh_here, inside)
    tl.store(d_m + here, d_m_here * mx_here, inside)
