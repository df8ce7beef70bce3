"""Single weights on a processor, in PyTorch's compressed rows (CSR).

It pays where few weights are left, about a twentieth: an active weight costs some ten times what it
costs in a dense product. Sparse matrices stand on the left of feature-major operands, (features,
tokens), so results come back as transposed views: an element-wise function keeps their layout, and
the next layer of this kind takes them as they lie.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


class Csr:
    """Products of a layer of which single weights (mask (out, in), block 1) are active."""

    def __init__(self, mask: Tensor, block: int) -> None:
        self._rows, self._columns = mask.nonzero(as_tuple=True)
        self._row_starts, self._column_starts = _starts(mask), _starts(mask.t())
        self._by_column = torch.argsort(self._columns, stable=True)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (N, in), weight (out, in) and bias (out,) to y (N, out)."""
        values = weight[self._rows, self._columns]
        y = self._matrix(values, weight.shape) @ x.t().contiguous()
        return (y if bias is None else y.add_(bias[:, None])).t()

    def backward(self, x: Tensor, weight: Tensor, d_y: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of x (N, in) and of weight (out, in), zero at inactive positions."""
        d_y_t = d_y.t().contiguous()
        values = weight[self._rows, self._columns][self._by_column]
        turned = _csr(self._column_starts, self._rows[self._by_column], values, weight.t().shape)
        at = self._matrix(torch.zeros_like(values), weight.shape)
        found = torch.sparse.sampled_addmm(at, d_y_t, x, beta=0.0)
        d_weight = torch.zeros_like(weight)
        d_weight[self._rows, self._columns] = found.values()
        return (turned @ d_y_t).t(), d_weight

    def _matrix(self, values: Tensor, shape: torch.Size) -> Tensor:
        return _csr(self._row_starts, self._columns, values, shape)


def _starts(mask: Tensor) -> Tensor:
    """Where each row's entries start, and at the end their number."""
    return torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))


def _csr(starts: Tensor, others: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR is in beta
        return torch.sparse_csr_tensor(starts, others, values, shape, check_invariants=False)
