"""The exact gradient of an output matrix as three sums over examples.

With G = dL/dW (D x d) for outputs o = W h and a loss of the spherical family,

    G = W C + 1 b^T + S,   C = sum 2 gq h h^T (d x d),   b = sum gs h (d),   S = sum ga e_target h^T

S has a row for every target that occurred, and is kept that way. The sums grow by micro-batches and
ranks; W must not change meanwhile. See docs/sparse-vocabulary.md for the derivation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.products import product, sum_of_outer
from pipeline.ranks import gather_objects, world_size

_KEEP_PIECES = 1 << 16  # rows after which equal targets are added up
ROWS_AT_ONCE = 1 << 14  # of a matrix, where it is gone through as a whole


def gram_of(rows: Callable[[slice], Tensor], outputs: int) -> tuple[Tensor, Tensor]:
    """W^T W (d, d) and W^T 1 (d) of the matrix whose slices `rows` gives: O(D d^2)."""
    none = rows(slice(0, 0))
    gram = none.new_zeros(none.shape[1], none.shape[1])
    total = none.new_zeros(none.shape[1])
    for first in range(0, outputs, ROWS_AT_ONCE):
        part = rows(slice(first, first + ROWS_AT_ONCE))
        gram += sum_of_outer(part, part)
        total += part.sum(dim=0)
    return gram, total


class GradientSums:
    """C (d, d), b (d) and the rows of S, in the dtype of the matrix's arithmetic."""

    def __init__(self, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self.c = torch.zeros(width, width, device=device, dtype=dtype)
        self.b = torch.zeros(width, device=device, dtype=dtype)
        self.clear()

    def to(self, device: torch.device) -> None:
        """Sums that are empty, to where the matrix has gone."""
        self.c, self.b = self.c.to(device), self.b.to(device)

    def clear(self) -> None:
        self.c.zero_()
        self.b.zero_()
        self._ids: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, h: Tensor, gq: Tensor, gs: Tensor, ga: Tensor, ids: Tensor) -> None:
        """Examples h (N, d) with their gq, gs (N,), ga (N, K) and target ids (N, K)."""
        self.c += sum_of_outer(h * (2 * gq).unsqueeze(1), h)
        self.b.addmv_(h.t(), gs)
        self._ids.append(ids.flatten())
        self._rows.append((ga.unsqueeze(-1) * h.unsqueeze(1)).flatten(0, 1))
        if sum(map(len, self._ids)) > _KEEP_PIECES and len(self._ids) > 1:
            self.rows()

    def rows(self) -> tuple[Tensor, Tensor]:
        """S as distinct ids (n,) in rising order and their rows (n, d)."""
        if not self._ids:
            return torch.empty(0, dtype=torch.int64, device=self.c.device), self.c[:0]
        ids, place = torch.unique(torch.cat(self._ids), return_inverse=True)
        rows = self.c.new_zeros(len(ids), self.c.shape[1])
        rows.index_add_(0, place, torch.cat(self._rows))
        self._ids, self._rows = [ids], [rows]
        return ids, rows

    def reduce(self) -> None:
        """Add up over ranks: C and b all-reduced, the rows of S gathered. Collective."""
        if world_size() == 1:
            return
        ids, rows = self.rows()
        both = torch.cat([self.c, self.b.unsqueeze(0)])
        dist.all_reduce(both)
        self.c.copy_(both[:-1])
        self.b.copy_(both[-1])
        # Ranks have different numbers of rows, and gathers want equal ones: padded by rows of zero.
        counts = gather_objects(len(ids))
        longest = max(counts)
        all_ids, all_rows = (_gathered(part, longest) for part in (ids, rows))
        self._ids = [part[:n] for part, n in zip(all_ids, counts, strict=True)]
        self._rows = [part[:n] for part, n in zip(all_rows, counts, strict=True)]

    def scale(self, factor: float) -> None:
        """As if every example's gradient had been multiplied by `factor`."""
        self.c *= factor
        self.b *= factor
        self._rows = [rows * factor for rows in self._rows]

    def gradient(self, weight: Tensor) -> Tensor:
        """G (D, d) at `weight` (D, d)."""
        ids, rows = self.rows()
        gradient = product(weight.to(self.c.dtype), self.c.t(), self.b)
        return gradient.index_add_(0, ids, rows)

    def norm_squared(self, gram_c: Tensor, rows_s: Tensor, total: Tensor, outputs: int) -> Tensor:
        """|G|^2 without G, from Q C with Q = W^T W, W[ids]^T S of the ids of `rows()`, W^T 1, D."""
        _, rows = self.rows()
        c, b = self.c, self.b
        return (
            (c * gram_c).sum()
            + 2 * (c * rows_s).sum()
            + 2 * (c @ total) @ b
            + (rows * rows).sum()
            + 2 * b @ rows.sum(dim=0)
            + outputs * (b @ b)
        )


def _gathered(part: Tensor, longest: int) -> list[Tensor]:
    padded = part.new_zeros(longest, *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return parts
