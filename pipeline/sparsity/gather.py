"""Blocks of weights on a processor: for each row of blocks one dense product of its active blocks.

The activations that meet a row's active blocks are gathered side by side, block by block, and
multiplied at the speed of dense products of that size. The input gradient goes by columns of blocks
in the same way, and what it gathers serves the weight gradient too.

Activations stay as models have them, (tokens, features): a block of features is then a run of
memory in every row, and neither what comes in nor what goes out is transposed. Only the weight
gradient, a sum over tokens, needs the input the other way round; it is turned over in one piece,
which takes a fifth of the time of turning its blocks one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.products import product


class BlockLayout:
    """Which blocks of a mask (out/block, in/block) are active, by row and by column."""

    def __init__(self, mask: Tensor, block: int) -> None:
        self.block = block
        self.columns_of_row = [row.nonzero().flatten() for row in mask]
        self.rows_of_column = [column.nonzero().flatten() for column in mask.t()]


class Gather:
    """Products of a layer whose weights live and die in blocks."""

    def __init__(self, mask: Tensor, block: int) -> None:
        self._layout = BlockLayout(mask, block)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (N, in), weight (out, in) and bias (out,) to y (N, out)."""
        x, block = x.contiguous(), self._layout.block
        y = x.new_empty(len(x), len(weight))
        for number, columns in enumerate(self._layout.columns_of_row):
            here = slice(number * block, (number + 1) * block)
            b = None if bias is None else bias[here]
            if len(columns):
                # Copied out at once, while the result is still in cache.
                y[:, here] = product(
                    _gathered(x, columns, block), _gathered(weight[here], columns, block), b
                )
            else:
                y[:, here] = 0 if b is None else b
        return y

    def backward(self, x: Tensor, weight: Tensor, d_y: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of x (N, in) and of weight (out, in), zero at inactive positions."""
        x_t, d_y, block = x.t().contiguous(), d_y.contiguous(), self._layout.block
        d_x, d_weight = d_y.new_empty(x.shape), torch.zeros_like(weight)
        for number, rows in enumerate(self._layout.rows_of_column):
            here = slice(number * block, (number + 1) * block)
            if len(rows):
                above = _gathered(d_y, rows, block)
                d_x[:, here] = product(above, _gathered(weight[:, here].t(), rows, block))
                found = product(x_t[here], above.t())  # (block, k * block)
                into = d_weight[:, here].t().unflatten(1, (-1, block))
                into.index_copy_(1, rows, found.unflatten(1, (-1, block)))
            else:
                d_x[:, here] = 0
        return d_x, d_weight


def _gathered(matrix: Tensor, blocks: Tensor, block: int) -> Tensor:
    """The columns (rows, k * block) of some blocks of columns, laid out as the matrix is."""
    if matrix.stride(1) == 1:
        return matrix.unflatten(1, (-1, block)).index_select(1, blocks).flatten(1)
    return matrix.t().unflatten(0, (-1, block)).index_select(0, blocks).flatten(0, 1).t()
