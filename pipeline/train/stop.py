"""Requests to stop: signals, a STOP file, a time limit, a launcher that is gone. Ranks agree on
them at a step edge.

Launchers do not tell every rank, or not in time, so a request seen by one rank must reach all
through the collective that every step makes anyway.
"""

from __future__ import annotations

import signal
from pathlib import Path
from time import monotonic
from types import FrameType

STOP, INTERRUPT = 1, 2


class StopRequest:
    """Poll `pending()` between steps: 0, STOP (exit 75) or INTERRUPT (exit 130)."""

    def __init__(self, stop_file: Path, stop_after_minutes: float | None) -> None:
        self._file = stop_file
        self._deadline = monotonic() + 60 * stop_after_minutes if stop_after_minutes else None
        self._signal = 0
        self._asked = ""
        self.reason = ""
        caught = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        self._before = {number: signal.signal(number, self._caught) for number in caught}

    def release(self) -> None:
        """Give the signals back to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self._signal:  # a second request: leave at once
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._signal = INTERRUPT if number == signal.SIGINT else STOP
        self.reason = signal.Signals(number).name

    def ask(self, reason: str) -> None:
        """Ask from within, on any thread. A signal after this one is still a first request."""
        self._asked = reason

    def pending(self) -> int:
        if self._signal:
            return self._signal
        if self._asked:
            self.reason = self._asked
            return STOP
        if self._deadline is not None and monotonic() > self._deadline:
            self.reason = "time limit"
            return STOP
        if self._file.exists():
            self.reason = "STOP file"
            return STOP
        return 0
