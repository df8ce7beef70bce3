"""Which instance comes when: a pure function of (seed, epoch, global instance number).

Nothing here knows ranks, devices or micro-batches: a rank takes its slice of a global batch at the
very end. So the order is the same on any number of devices, resuming needs one integer, and nothing
about the order is ever stored.

Shuffled order permutes the windows of an epoch with a keyed Feistel network over their indices, so
a permutation of any size costs no memory. Lane order gives row b of every global batch one
contiguous piece of the stream to walk, window after window, so that a recurrent state can be
carried (Puri et al. 2018; see docs/pipeline.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_prep.errors import DataError
from pipeline.seeds import derive_key

_ROUNDS = 6


def permute(indices: np.ndarray, size: int, key: int) -> np.ndarray:
    """Image of `indices` (int64, each in [0, size)) under the keyed permutation of [0, size).

    A balanced Feistel network permutes [0, 4^k); values that land outside are walked on until they
    are inside, which keeps it a permutation of [0, size).
    """
    bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    image = _feistel(indices.astype(np.uint64), bits, key)
    outside = image >= size
    while outside.any():
        image[outside] = _feistel(image[outside], bits, key)
        outside = image >= size
    return image.astype(np.int64)


def _feistel(values: np.ndarray, bits: int, key: int) -> np.ndarray:
    mask = np.uint64((1 << bits) - 1)
    shift = np.uint64(bits)
    left, right = values >> shift, values & mask
    for round_key in _round_keys(key):
        left, right = right, left ^ (_mix(right + round_key) & mask)
    return (left << shift) | right


@lru_cache(maxsize=16)
def _round_keys(key: int) -> list[np.uint64]:
    return [np.uint64(derive_key(key, number)) for number in range(_ROUNDS)]


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64; wrapping multiplication is meant."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class ShuffledOrder:
    """Windows of an epoch in a permuted order; every window once per epoch."""

    tokens: int  # length of the stream
    window: int
    seed: int

    def __post_init__(self) -> None:
        if self.windows < 1:
            raise DataError(
                f"the training split holds {self.tokens} tokens, fewer than one window of "
                f"{self.window} + 1: add text or make batch.window_tokens smaller"
            )

    @property
    def windows(self) -> int:
        """Windows per epoch; a target is the next token, so the last token is only a target."""
        return (self.tokens - 1) // self.window

    def starts(self, instances: np.ndarray) -> np.ndarray:
        """Stream offsets of the first input token of each global instance number."""
        epochs, positions = np.divmod(instances, self.windows)
        starts = np.empty_like(positions)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            key = derive_key(self.seed, "epoch", int(epoch))
            starts[rows] = permute(positions[rows], self.windows, key) * self.window
        return starts

    def epoch(self, instance: int) -> float:
        return instance / self.windows


@dataclass(frozen=True)
class LaneOrder:
    """Row b of every global batch walks its own contiguous piece of a circular stream.

    Each epoch moves the lane edges by a seeded offset, so that no text sits at an edge for ever. A
    lane's state is zeroed when an epoch begins (`starts_epoch`), carried otherwise.
    """

    tokens: int
    window: int
    seed: int
    lanes: int  # rows of the global batch

    def __post_init__(self) -> None:
        if self.windows_per_lane < 1:
            need = self.lanes * self.window + 1
            raise DataError(
                f"{self.lanes} lanes of {self.window} tokens need at least {need} tokens, but the "
                f"training split holds {self.tokens} (with tokenizer.kind=bytes tokens are bytes): "
                "add text, or make batch.global_batch or batch.window_tokens smaller"
            )

    @property
    def windows_per_lane(self) -> int:
        return (self.tokens - 1) // self.window // self.lanes

    def starts(self, instances: np.ndarray) -> np.ndarray:
        """Stream offsets of the first input token of each instance; the stream wraps around."""
        steps, lanes = np.divmod(instances, self.lanes)
        epochs, positions = np.divmod(steps, self.windows_per_lane)
        offsets = np.empty_like(epochs)
        for epoch in np.unique(epochs):
            offsets[epochs == epoch] = self._offset(int(epoch))
        return (offsets + (lanes * self.windows_per_lane + positions) * self.window) % self.tokens

    def starts_epoch(self, instances: np.ndarray) -> np.ndarray:
        """True for instances that begin their lane's walk of an epoch."""
        return (instances // self.lanes) % self.windows_per_lane == 0

    def _offset(self, epoch: int) -> int:
        return derive_key(self.seed, "lanes", epoch) % self.tokens if epoch else 0

    def epoch(self, instance: int) -> float:
        return instance / (self.lanes * self.windows_per_lane)


def rank_rows(global_batch: int, rank: int, world_size: int) -> range:
    """The rows of a global batch that a rank computes: contiguous, so a lane never moves."""
    share = global_batch // world_size
    return range(rank * share, (rank + 1) * share)
