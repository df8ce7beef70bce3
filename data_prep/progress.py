"""Progress of long work: bytes and documents, counted wherever they are handled, shown in one
place. Worker processes share the counters of the process that started them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from types import TracebackType
from typing import Any

from tqdm import tqdm

_SHOW_EVERY_SECONDS = 0.2
_LINE_EVERY_SECONDS = 30.0


class Meter:
    """What this process and its workers have handled so far."""

    def __init__(self) -> None:
        self.bytes = 0
        self.documents = 0
        self.on_change: Callable[[], None] | None = None
        self._shared: tuple[Synchronized[int], Synchronized[int]] | None = None

    def add(self, count: int = 0, documents: int = 0) -> None:
        """Count bytes of input and documents."""
        if self._shared is None:
            self.bytes += count
            self.documents += documents
        else:
            for shared, amount in zip(self._shared, (count, documents), strict=True):
                with shared.get_lock():
                    shared.value += amount
        if self.on_change is not None:
            self.on_change()

    def share(self, context: Any) -> tuple[Any, Any]:
        """Counters to hand to worker processes of a multiprocessing context."""
        self._shared = context.Value("q", self.bytes), context.Value("q", self.documents)
        return self._shared

    def join(self, shared: tuple[Any, Any]) -> None:
        """In a worker: count where the parent reads."""
        self._shared = shared

    def read(self) -> tuple[int, int]:
        """Bytes and documents so far."""
        if self._shared is None:
            return self.bytes, self.documents
        return self._shared[0].value, self._shared[1].value

    def part(self) -> None:
        """Count alone again: the workers are gone."""
        self.bytes, self.documents = self.read()
        self._shared = None


METER = Meter()


class Bar:
    """Bytes/s, documents/s and time left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, title: str, total_bytes: int, done_bytes: int = 0) -> None:
        self._title, self._total, self._start = title, total_bytes, done_bytes
        self._began = self._said = time.monotonic()
        self._shown = 0.0
        self._bar = tqdm(
            desc=title, total=total_bytes, initial=done_bytes, unit="B", unit_scale=True,
            disable=None, leave=False,
        )  # fmt: skip
        self._bytes_before, self._documents_before = METER.read()

    def update(self) -> None:
        """Show what the meter has; cheap enough to call often."""
        now = time.monotonic()
        if now - self._shown < _SHOW_EVERY_SECONDS:
            return
        self._shown = now
        count, documents = METER.read()
        count, documents = count - self._bytes_before, documents - self._documents_before
        elapsed = max(now - self._began, 1e-9)
        if not self._bar.disable:
            self._bar.set_postfix_str(f"{documents / elapsed:,.0f} documents/s", refresh=False)
            self._bar.update(min(self._start + count, self._total) - self._bar.n)
        elif now - self._said > _LINE_EVERY_SECONDS:
            self._said = now
            print(self._line(count, documents, elapsed), file=sys.stderr, flush=True)

    def _line(self, count: int, documents: int, elapsed: float) -> str:
        done = min((self._start + count) / max(self._total, 1), 1.0)
        left = (self._total - self._start - count) * elapsed / max(count, 1)
        speed = f"{count / elapsed / 1e6:.1f} MB/s, {documents / elapsed:,.0f} documents/s"
        return f"{self._title}: {done:.0%}, {speed}, about {max(left, 0) / 60:.0f} min left"

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._bar.close()
