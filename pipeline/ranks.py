"""Small collective helpers: every rank must call them, never under `if rank == 0`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from data_prep.errors import disk_trouble

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all ranks. Collective."""
    if world_size() > 1:
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """One picklable value from every rank, in rank order, on every rank. Collective."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def agree(work: Callable[[], T]) -> T:
    """Run `work` on this rank; if it fails on any rank, every rank raises that error. Collective.

    Without this, one rank's full disk leaves the others waiting in the next collective.
    """
    value, error = None, None
    try:
        value = work()
    except Exception as caught:  # whatever it is, all ranks must hear of it
        error = disk_trouble(caught) or caught
    for other in gather_objects(error):
        if other is not None:
            raise other
    return value  # type: ignore[return-value]


def from_rank0(work: Callable[[], T]) -> T:
    """Result of `work` on rank 0 for every rank; its failure is everyone's. Collective."""
    value = agree(lambda: work() if rank() == 0 else None)
    return gather_objects(value)[0]
