"""Batches by number: `loader.at(clock.instances, global_batch)` gives this rank's rows of it.

A batch is a pure function of the clock, so there is no iterator state to save. The next batch is
read ahead on a thread while the device works.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_prep.shards import Split
from pipeline.data.order import LaneOrder, ShuffledOrder, rank_rows


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass. All tensors are (B, T); `rows` are places in this rank's state."""

    inputs: Tensor  # int64
    targets: Tensor  # int64, the next token
    weights: Tensor  # float32, 0 for padding
    resets: Tensor | None  # bool, True where a recurrent state is zeroed before the token
    rows: slice

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(
            self.inputs.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.weights.to(device, non_blocking=True),
            None if self.resets is None else self.resets.to(device, non_blocking=True),
            self.rows,
        )


@dataclass(frozen=True)
class Batch:
    """This rank's share of one global batch, and the token count of the whole of it."""

    micro_batches: list[MicroBatch]
    global_tokens: int

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self.micro_batches)


class Loader:
    """Reads global batches of a split by instance number."""

    def __init__(
        self,
        split: Split,
        order: ShuffledOrder | LaneOrder,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.order = order
        self._split = split
        self._micro = micro_batch
        self._rank, self._world_size = rank, world_size
        self._ahead: tuple[tuple[int, int], Future[Batch]] | None = None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")

    def at(self, instance: int, global_batch: int) -> Batch:
        """The global batch of so many instances that begins at `instance`; starts reading one like
        it that follows."""
        if self._ahead is not None and self._ahead[0] == (instance, global_batch):
            batch = self._ahead[1].result()
        else:
            batch = self._read(instance, global_batch)
        following = (instance + global_batch, global_batch)
        self._ahead = (following, self._reader.submit(self._read, *following))
        return batch

    def close(self) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, instance: int, global_batch: int) -> Batch:
        rows = rank_rows(global_batch, self._rank, self._world_size)
        numbers = instance + np.arange(rows.start, rows.stop, dtype=np.int64)
        starts = self.order.starts(numbers)
        tokens = self._split.windows(starts, self.order.window + 1)
        resets = None
        if isinstance(self.order, LaneOrder):
            resets = self._split.resets(starts, self.order.window)
            resets[:, 0] |= self.order.starts_epoch(numbers)
        micro_batches = [
            micro_batch(tokens, resets, slice(first, first + self._micro))
            for first in range(0, len(numbers), self._micro)
        ]
        return Batch(micro_batches, global_batch * self.order.window)


def micro_batch(tokens: np.ndarray, resets: np.ndarray | None, rows: slice) -> MicroBatch:
    """Inputs and targets of some rows of (B, T + 1) tokens, nothing padded."""
    # Converted apart: each is contiguous after one pass over the narrow ids.
    inputs = torch.from_numpy(tokens[rows, :-1].astype(np.int64))
    return MicroBatch(
        inputs=inputs,
        targets=torch.from_numpy(tokens[rows, 1:].astype(np.int64)),
        weights=torch.ones(inputs.shape),
        resets=None if resets is None else torch.from_numpy(resets[rows]),
        rows=rows,
    )
