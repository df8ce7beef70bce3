"""Rows of a large matrix, dealt out to ranks in turn: fetched, routed and gathered.

What travels is what is asked for, never the matrix. All functions are collective.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.ranks import rank, world_size


class RowShares:
    """Row i of `rows` is kept by rank i % world_size: where ids are sorted by frequency, runs of
    rows would give one rank all the work."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.own = slice(rank(), rows, world_size())

    def fetch(self, ids: Tensor, own_rows: Tensor) -> Tensor:
        """The rows of `ids` (any shape, ids + (d,)) from the ranks that keep them."""
        if world_size() == 1:
            return own_rows[ids]
        wanted, place = torch.unique(ids, return_inverse=True)
        order, give, take = self._by_owner(wanted)
        asked = _exchange(wanted[order], give, take) // world_size()
        found = own_rows.new_empty(len(wanted), own_rows.shape[1])
        found[order] = _exchange(own_rows[asked], take, give)
        return found[place]

    def route(self, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """`rows` (n, d) of `ids` (n,), each to the rank that keeps it: what came in, ids counted
        within the share of this rank. A row may have come from several ranks."""
        if world_size() == 1:
            return ids, rows
        order, give, take = self._by_owner(ids)
        came = _exchange(ids[order], give, take) // world_size()
        return came, _exchange(rows[order], give, take)

    def gather(self, own_rows: Tensor) -> Tensor:
        """The whole matrix, on every rank."""
        if world_size() == 1:
            return own_rows
        most = -(-self.rows // world_size())
        padded = own_rows.new_zeros(most, *own_rows.shape[1:])
        padded[: len(own_rows)] = own_rows
        parts = [torch.empty_like(padded) for _ in range(world_size())]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[: self.rows]

    def _by_owner(self, ids: Tensor) -> tuple[Tensor, list[int], list[int]]:
        """The order that sorts `ids` by rank, how many each rank keeps, and how many it asks."""
        owners = ids % world_size()
        give = torch.bincount(owners, minlength=world_size())
        take = torch.empty_like(give)
        dist.all_to_all_single(take, give)
        return owners.argsort(stable=True), give.tolist(), take.tolist()


def _exchange(part: Tensor, give: list[int], take: list[int]) -> Tensor:
    """`give[r]` rows of `part` to rank r, and `take[r]` from it, in the order of ranks."""
    received = part.new_empty(sum(take), *part.shape[1:])
    dist.all_to_all_single(received, part.contiguous(), take, give)
    return received
