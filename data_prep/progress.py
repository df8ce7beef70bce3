"""Progress of long work: bytes and documents, counted wherever they are handled, shown in one
place. Each worker process counts in memory that the process which started it reads."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
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
        self._of_workers: Any = None  # of each the bytes, then of each the documents
        self._place: int | None = None  # of this process among them

    def add(self, count: int = 0, documents: int = 0) -> None:
        """Count bytes of input and documents."""
        self.bytes += count
        self.documents += documents
        if self._place is not None:
            self._of_workers[0][self._place] = self.bytes
            self._of_workers[1][self._place] = self.documents
        if self.on_change is not None:
            self.on_change()

    def share(self, context: Any, workers: int) -> Any:
        """What to hand to the workers, processes of a multiprocessing context. Each has a place of
        its own, so that no lock is needed: a worker that is killed would hold one for ever."""
        self._of_workers = tuple(context.RawArray("q", workers) for _ in range(2))
        return self._of_workers

    def join(self, shared: Any) -> None:
        """In a worker: count where the parent reads."""
        self._of_workers = shared
        # Processes are numbered as they are started, and a pool starts no more than it has.
        self._place = multiprocessing.current_process()._identity[-1] % len(shared[0])

    def read(self) -> tuple[int, int]:
        """Bytes and documents so far."""
        if self._of_workers is None:
            return self.bytes, self.documents
        counts, documents = self._of_workers
        return self.bytes + sum(counts), self.documents + sum(documents)

    def part(self) -> None:
        """Count alone again: the workers are gone."""
        self.bytes, self.documents = self.read()
        self._of_workers = None


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
