"""Blocks of weights on a processor: one small product for each active block, where things lie.

A block of features is a view of the activations, and the library of products reads views and adds
to them at full speed. So nothing is gathered, turned over or copied out; each block adds its part
to the result, which stays in cache from one to the next.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Blocks:
    """Products of a layer whose weights live and die in blocks."""

    def __init__(self, mask: Tensor, block: int) -> None:
        def place(number: int) -> slice:
            return slice(number * block, (number + 1) * block)

        # Neighbours add to the same part of a result, forward by rows and backward by columns.
        by_row, by_column = mask.nonzero().tolist(), mask.t().nonzero().tolist()
        self._by_row = [(place(row), place(column)) for row, column in by_row]
        self._by_column = [(place(row), place(column)) for column, row in by_column]

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (N, in), weight (out, in) and bias (out,) to y (N, out)."""
        x, y = x.contiguous(), x.new_empty(len(x), len(weight))
        y.copy_(bias if bias is not None else y.new_zeros(()))
        for row, column in self._by_row:
            y[:, row].addmm_(x[:, column], weight[row, column].t())
        return y

    def backward(self, x: Tensor, weight: Tensor, d_y: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of x (N, in) and of weight (out, in), zero at inactive positions."""
        x, d_y = x.contiguous(), d_y.contiguous()
        d_x, d_weight = torch.zeros_like(x), torch.zeros_like(weight)
        for row, column in self._by_column:
            above = d_y[:, row]
            d_x[:, column].addmm_(above, weight[row, column])
            d_weight[row, column].addmm_(above.t(), x[:, column])
        return d_x, d_weight
