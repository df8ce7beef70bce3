"""Rows of a large matrix, shared out over ranks in equal runs: fetched, routed and gathered.

What travels is what is asked for, never the matrix. All functions are collective.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.ranks import rank, world_size


class RowShares:
    """Which rank keeps which of `rows` rows: rank r those from `starts[r]` to `starts[r + 1]`."""

    def __init__(self, rows: int) -> None:
        self.starts = [rows * r // world_size() for r in range(world_size() + 1)]

    @property
    def own(self) -> slice:
        return slice(self.starts[rank()], self.starts[rank() + 1])

    def fetch(self, ids: Tensor, own_rows: Tensor) -> Tensor:
        """The rows of `ids` (any shape, ids + (d,)) from the ranks that keep them."""
        if world_size() == 1:
            return own_rows[ids]
        wanted, place = torch.unique(ids, return_inverse=True)
        give, take = self._counts(wanted)
        asked = _exchange(wanted, give, take)
        found = _exchange(own_rows[asked - self.starts[rank()]], take, give)
        return found[place]

    def route(self, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Distinct rising `ids` (n,) and their `rows` (n, d), each to the rank that keeps it: what
        came in, ids counted from the first row of this rank. An id may come from several ranks."""
        if world_size() == 1:
            return ids, rows
        give, take = self._counts(ids)
        return _exchange(ids, give, take) - self.starts[rank()], _exchange(rows, give, take)

    def gather(self, own_rows: Tensor) -> Tensor:
        """The whole matrix, on every rank."""
        if world_size() == 1:
            return own_rows
        most = max(b - a for a, b in zip(self.starts, self.starts[1:], strict=False))
        padded = own_rows.new_zeros(most, *own_rows.shape[1:])
        padded[: len(own_rows)] = own_rows
        parts = [torch.empty_like(padded) for _ in range(world_size())]
        dist.all_gather(parts, padded)
        sizes = [b - a for a, b in zip(self.starts, self.starts[1:], strict=False)]
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def _counts(self, ids: Tensor) -> tuple[list[int], list[int]]:
        """How many of the rising `ids` each rank keeps, and how many of its own each rank asks."""
        bounds = torch.tensor(self.starts, device=ids.device)
        give = torch.searchsorted(ids.contiguous(), bounds).diff()
        take = torch.empty_like(give)
        dist.all_to_all_single(take, give)
        return give.tolist(), take.tolist()


def _exchange(part: Tensor, give: list[int], take: list[int]) -> Tensor:
    """`give[r]` rows of `part` to rank r, and `take[r]` from it, in the order of ranks."""
    received = part.new_empty(sum(take), *part.shape[1:])
    dist.all_to_all_single(received, part.contiguous(), take, give)
    return received
