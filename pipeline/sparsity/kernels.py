"""Blocks of weights on a GPU: only tiles of active blocks are read and multiplied.

The weight stays where it lies, dense, and is read through its strides, so that neither a packed nor
a transposed copy is made. A block is cut into square tiles whose side is a power of two, at most
128. Sums are in fp32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pipeline.sparsity.topology import spread

try:
    import triton
    from triton import jit
    from triton import language as tl
except ImportError:
    triton = None

    def jit(kernel: Any) -> Any:  # type: ignore[no-redef]
        """Leave the kernel as it is: nothing launches it."""
        return kernel


_TILE = 128  # the largest side of a tile
_PROGRAMS = 512  # of the weight gradient: several for each multiprocessor
_PLACED_ROWS = 16  # of a tile that a program writes


class Triton:
    """Products of a layer whose weights live and die in blocks of a multiple of 16."""

    def __init__(self, mask: Tensor, block: int) -> None:
        self._tile = math.gcd(block, _TILE)
        tiles = spread(mask, block // self._tile)
        self._rows, self._columns = tiles.nonzero(as_tuple=True)
        self._by_row, self._by_column = _Lists(tiles), _Lists(tiles.t())

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (N, in), weight (out, in) and bias (out,) to y (N, out)."""
        return self._times(x.contiguous(), weight, bias, self._by_row)

    def backward(self, x: Tensor, weight: Tensor, d_y: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of x (N, in) and of weight (out, in), zero at inactive positions."""
        x, d_y = x.contiguous(), d_y.contiguous()
        d_x = self._times(d_y, weight.t(), None, self._by_column)
        return d_x, self._outer(d_y, x, torch.zeros_like(weight))

    def _times(self, x: Tensor, weight: Tensor, bias: Tensor | None, lists: _Lists) -> Tensor:
        """x (N, K) by weight (M, K): (N, M)."""
        tile, depth = self._tile, _depth(x.dtype)
        y = x.new_empty(len(x), len(weight))
        grid = len(weight) // tile, triton.cdiv(len(x), 2 * depth)
        _times_blocks[grid](
            x, weight, bias, y, lists.starts, lists.others, len(x), x.shape[1], len(weight),
            weight.stride(0), weight.stride(1),
            TILE=tile, TOKENS=2 * depth, DEPTH=min(tile, depth), num_warps=_warps(tile),
        )  # fmt: skip
        return y

    def _outer(self, d_y: Tensor, x: Tensor, into: Tensor) -> Tensor:
        """The sum over tokens of d_y x^T on each active tile of `into` (out, in).

        With few tiles each sum is made in parts, which are then added in a fixed order.
        """
        tile, active, depth = self._tile, len(self._rows), _depth(x.dtype)
        steps = triton.cdiv(len(x), depth)
        parts = min(steps, triton.cdiv(_PROGRAMS, max(1, active)))
        if active:
            sums = x.new_empty(parts, active, tile, tile, dtype=torch.float32)
            _outer_blocks[active, parts](
                d_y, x, sums, self._rows, self._columns, len(x), d_y.shape[1], x.shape[1],
                triton.cdiv(steps, parts), TILE=tile, TOKENS=depth, num_warps=_warps(tile),
            )  # fmt: skip
            _add_parts[active, tile // _PLACED_ROWS](
                sums, into, self._rows, self._columns, parts, into.stride(0), into.stride(1),
                TILE=tile, ROWS=_PLACED_ROWS,
            )  # fmt: skip
        return into


class _Lists:
    """The active tiles of each row of a mask, one after another."""

    def __init__(self, mask: Tensor) -> None:
        self.starts = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()
        self.others = mask.nonzero()[:, 1].int()


def _depth(dtype: torch.dtype) -> int:
    """Terms of a sum that are read at once: three such stages, the pipeline's default, fit the
    shared memory of any recent GPU."""
    return 32 if dtype == torch.float32 else 64


def _warps(tile: int) -> int:
    return 8 if tile == _TILE else 4


@jit
def _times_blocks(  # type: ignore[no-untyped-def]
    x, weight, bias, y, starts, others, tokens, x_features, y_features, row_stride, column_stride,
    TILE: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile of y: the sum, over the active tiles of its row of the weight, of x by their
    transposes, DEPTH inputs at a time."""
    row = tl.program_id(0)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    inside = (token < tokens)[:, None]
    feature, depth = row * TILE + tl.arange(0, TILE), tl.arange(0, DEPTH)
    # Offsets of a whole batch of activations may pass 2^31.
    x_rows = x + token.to(tl.int64)[:, None] * x_features
    w_rows = weight + feature.to(tl.int64)[None, :] * row_stride
    total = tl.zeros((TOKENS, TILE), tl.float32)
    pieces: tl.constexpr = TILE // DEPTH
    for step in range(tl.load(starts + row) * pieces, tl.load(starts + row + 1) * pieces):
        column = tl.load(others + step // pieces) * TILE + step % pieces * DEPTH + depth
        left = tl.load(x_rows + column[None, :], inside, 0.0)
        right = tl.load(w_rows + column.to(tl.int64)[:, None] * column_stride)
        total = tl.dot(left, right, total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + feature).to(tl.float32)[None, :]
    tl.store(y + token.to(tl.int64)[:, None] * y_features + feature[None, :], total, inside)


@jit
def _outer_blocks(  # type: ignore[no-untyped-def]
    d_y, x, sums, rows, columns, tokens, y_features, x_features, steps,
    TILE: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """A part of the sum over tokens for one active tile: `steps` times TOKENS of them."""
    number, part = tl.program_id(0), tl.program_id(1)
    side = tl.arange(0, TILE)
    above = d_y + tl.load(rows + number) * TILE + side[None, :]
    below = x + tl.load(columns + number) * TILE + side[None, :]
    total = tl.zeros((TILE, TILE), tl.float32)
    for step in range(part * steps, (part + 1) * steps):
        token = (step * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None]
        left = tl.load(above + token * y_features, token < tokens, 0.0)
        right = tl.load(below + token * x_features, token < tokens, 0.0)
        total = tl.dot(tl.trans(left), right, total, input_precision="ieee")
    here = (part * tl.num_programs(0) + number).to(tl.int64) * TILE * TILE
    tl.store(sums + here + side[:, None] * TILE + side[None, :], total)


@jit
def _add_parts(  # type: ignore[no-untyped-def]
    sums, weight, rows, columns, parts, row_stride, column_stride,
    TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The parts of one tile, ROWS rows of it, summed and put where the tile lies in `weight`."""
    number = tl.program_id(0)
    down, across = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, TILE)
    total = tl.zeros((ROWS, TILE), tl.float32)
    for part in range(parts):
        here = (part * tl.num_programs(0) + number).to(tl.int64) * TILE * TILE
        total += tl.load(sums + here + down[:, None] * TILE + across[None, :])
    row = tl.load(rows + number) * TILE + down
    column = tl.load(columns + number) * TILE + across
    tl.store(weight + row[:, None] * row_stride + column[None, :] * column_stride, total)
