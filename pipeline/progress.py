"""How far long work has come: a bar on a terminal, a line every half minute elsewhere.

For work of one process. Training has its console line instead.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_LINE_EVERY_S = 30.0


class Progress:
    """`total` pieces of work called `unit`, under a title; `update` counts those that are done."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = 0
        self._began = self._said = time.monotonic()
        self._bar = tqdm(desc=title, total=total, unit=unit, disable=None, leave=False)

    def update(self, count: int = 1) -> None:
        """`count` more are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now - self._said >= _LINE_EVERY_S:
            self._said = now
            print(self._line(now - self._began), file=sys.stderr, flush=True)

    def _line(self, elapsed_s: float) -> str:
        left_s = (self._total - self._done) * elapsed_s / max(self._done, 1)
        share = self._done / max(self._total, 1)
        return (
            f"{self._title}: {self._done:,} of {self._total:,} {self._unit}s ({share:.0%}), "
            f"about {left_s / 60:.1f} min left"
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._bar.close()
