"""The exact gradient of an output matrix as three sums over examples.

With G = dL/dW (D x d) for outputs o = W h and a loss of the spherical family,

    G = W C + 1 b^T + S,   C = sum 2 gq h h^T (d x d),   b = sum gs h (d),   S = sum ga e_target h^T

S has a row for every target that occurred, and is kept that way. The sums grow by micro-batches and
ranks; W must not change meanwhile. See docs/sparse-vocabulary.md for the derivation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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


class Examples(NamedTuple):
    """What the sums are made of, of N examples with K targets each."""

    h: Tensor  # (N, d)
    gq: Tensor  # (N,)
    gs: Tensor  # (N,)
    ga: Tensor  # (N, K)
    ids: Tensor  # (N, K)


class GradientSums:
    """C (d, d), b (d) and the rows of S, in the dtype of the matrix's arithmetic.

    Examples wait until they are asked for or number d: fewer than d are cheaper to send than C.
    """

    def __init__(self, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self._c = torch.zeros(width, width, device=device, dtype=dtype)
        self._b = torch.zeros(width, device=device, dtype=dtype)
        self.clear()

    def to(self, device: torch.device) -> None:
        """Sums that are empty, to where the matrix has gone."""
        self._c, self._b = self._c.to(device), self._b.to(device)

    def clear(self) -> None:
        self._c.zero_()
        self._b.zero_()
        self._ids: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._waiting: list[Examples] = []

    @property
    def c(self) -> Tensor:
        self._sum()
        return self._c

    @property
    def b(self) -> Tensor:
        self._sum()
        return self._b

    def add(self, examples: Examples) -> None:
        # Summed later, outside of backward, where nothing may grow a graph.
        self._waiting.append(Examples(*(part.detach() for part in examples)))
        if self._waiting_examples >= len(self._b):
            self._sum()

    @property
    def _waiting_examples(self) -> int:
        return sum(len(examples.h) for examples in self._waiting)

    def _sum(self) -> None:
        if not self._waiting:
            return
        for h, gq, gs, ga, ids in self._waiting:
            self._c += sum_of_outer(h * (2 * gq).unsqueeze(1), h)
            self._b.addmv_(h.t(), gs)
            self._ids.append(ids.flatten())
            self._rows.append((ga.unsqueeze(-1) * h.unsqueeze(1)).flatten(0, 1))
        self._waiting.clear()
        if sum(map(len, self._ids)) > _KEEP_PIECES and len(self._ids) > 1:
            self.rows()

    def rows(self) -> tuple[Tensor, Tensor]:
        """S as distinct ids (n,) in rising order and their rows (n, d)."""
        self._sum()
        if not self._ids:
            return torch.empty(0, dtype=torch.int64, device=self._b.device), self._c[:0]
        ids, place = torch.unique(torch.cat(self._ids), return_inverse=True)
        rows = self._c.new_zeros(len(ids), len(self._b))
        rows.index_add_(0, place, torch.cat(self._rows))
        self._ids, self._rows = [ids], [rows]
        return ids, rows

    def reduce(self) -> None:
        """Add up over ranks, the same to the last bit on all of them. Collective."""
        if world_size() == 1:
            return
        # With rows of S there are examples in the sums already, which cannot be sent alone.
        waiting = gather_objects(None if self._ids else self._waiting_examples)
        if None not in waiting and sum(waiting) < len(self._b):
            self._waiting = self._examples_of_all_ranks(waiting)
        else:
            self.reduce_products()
            self.replace_rows(*_of_all_ranks(*self.rows()))

    def reduce_products(self) -> None:
        """Add up C and b over ranks, not S. Collective."""
        if world_size() > 1:
            both = torch.cat([self.c, self.b.unsqueeze(0)])
            dist.all_reduce(both)
            self._c.copy_(both[:-1])
            self._b.copy_(both[-1])

    def replace_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Put other rows in the place of S; an id may occur several times."""
        self._ids, self._rows = [ids], [rows]

    def _examples_of_all_ranks(self, counts: list[int]) -> list[Examples]:
        h, gq, gs, ga, ids = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        numbers = torch.cat([h, gq.unsqueeze(1), gs.unsqueeze(1), ga], dim=1)
        all_numbers, all_ids = (_gathered(part, counts) for part in (numbers, ids))
        width = h.shape[1]
        return [
            Examples(
                found[:, :width], found[:, width], found[:, width + 1], found[:, width + 2 :], i
            )
            for found, i in zip(all_numbers, all_ids, strict=True)
        ]

    def scale(self, factor: float) -> None:
        """As if every example's gradient had been multiplied by `factor`."""
        self._sum()
        self._c *= factor
        self._b *= factor
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


def _of_all_ranks(ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    counts = gather_objects(len(ids))
    return torch.cat(_gathered(ids, counts)), torch.cat(_gathered(rows, counts))


def _gathered(part: Tensor, counts: list[int]) -> list[Tensor]:
    """What every rank has, `counts` of them: gathers want equal numbers, so padded by zeros."""
    padded = part.new_zeros(max(counts), *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return [found[:count] for found, count in zip(parts, counts, strict=True)]
