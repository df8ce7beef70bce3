"""Small token streams in real shards, and in memory for tests of the order alone."""

from __future__ import annotations

import numpy as np

from data_prep.shards import Split
from tests.shard_files import write_split

__all__ = ["Stream", "random_stream", "reset_points", "write_split"]


class Stream(Split):
    """A split in memory whose documents begin at the resets, and at 0."""

    def __init__(self, ids: np.ndarray, resets: list[int]) -> None:
        entry = {"documents": len(resets), "bytes": len(ids), "characters": len(ids)}
        super().__init__("train", entry, 2**16, resets=1 if resets else 0)
        ends = np.array(sorted({*resets, len(ids)} - {0}), np.uint64)
        self.dtype, self._ids, self._ends = ids.dtype, [ids], [ends]
        self._starts = np.array([0, len(ids)])
        self._documents_before = np.array([0, len(ends)])


def random_stream(tokens: int, seed: int, reset_every: int = 5) -> Stream:
    rng = np.random.default_rng(seed)
    resets = np.flatnonzero(rng.random(tokens) < 1 / reset_every).tolist()
    return Stream(rng.integers(0, 300, tokens).astype("u2"), resets)


def reset_points(split: Split) -> set[int]:
    """Where documents with a reset begin, looked up one by one, and the stream's beginning."""
    starts = [0, *split.document_ends[:-1].tolist()]
    return {0, *(starts[:: split.reset_documents] if split.reset_documents else [])}
