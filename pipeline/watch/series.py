"""A curve of any length in bounded memory, and what a reader of it has not seen yet.

Points are gathered in buckets of equal count; each keeps its mean and its extremes, so spikes stay.
When there are too many buckets, neighbours are joined and all later buckets hold twice as many.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

_MOST_BUCKETS = 1024
# A reader names the generation it holds. Beginning at the clock, none is ever used twice, not even
# by a server that was started again; in milliseconds, JavaScript can still count them.
_generations = itertools.count(int(time.time() * 1000))

Place = tuple[float | None, ...]  # on every horizontal axis


@dataclass
class _Bucket:
    count: int
    last: Place
    low: float
    total: float
    high: float

    def join(self, later: _Bucket) -> None:
        self.count += later.count
        self.last = later.last
        self.low, self.high = min(self.low, later.low), max(self.high, later.high)
        self.total += later.total

    def row(self) -> list[float | None]:
        """Its last place, then lowest, mean and highest value, to six digits."""
        values = (self.low, self.total / self.count, self.high)
        return [*self.last, *(float(f"{value:.6g}") for value in values)]


class Series:
    """One metric of one run, in the order it was logged."""

    def __init__(self) -> None:
        self.generation = next(_generations)
        self._per_bucket = 1
        self._buckets: list[_Bucket] = []

    def add(self, place: Place, value: float) -> None:
        """The next point; `value` is finite."""
        point = _Bucket(1, place, value, value, value)
        if self._buckets and self._buckets[-1].count < self._per_bucket:
            self._buckets[-1].join(point)
            return
        if len(self._buckets) == _MOST_BUCKETS:
            self._halve()
        self._buckets.append(point)

    def news(self, generation: int, known: int) -> dict[str, Any] | None:
        """What a reader lacks who holds `known` full buckets of `generation`; None for nothing.

        `rows` replace the reader's rows from `start` on; `known` is what to ask with next.
        """
        start = known if generation == self.generation and known <= len(self._buckets) else 0
        rows = [bucket.row() for bucket in self._buckets[start:]]
        if not rows and generation == self.generation:
            return None
        full = len(self._buckets)
        if self._buckets and self._buckets[-1].count < self._per_bucket:
            full -= 1
        return {"generation": self.generation, "start": start, "rows": rows, "known": full}

    def _halve(self) -> None:
        for first, second in zip(self._buckets[::2], self._buckets[1::2], strict=True):
            first.join(second)
        self._buckets = self._buckets[::2]
        self._per_bucket *= 2
        self.generation = next(_generations)
