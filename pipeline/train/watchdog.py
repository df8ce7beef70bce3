"""When nothing moves: who is to blame is named, all stacks are written, and the process leaves.

A peer that was stopped, a host that died or a cut link leave the others waiting in a collective,
for ever or for half an hour: DeepSpeed's process groups do not know the time-out that was asked
for. So every rank has two threads of its own. `heart` shows others that the process lives, in
runs/NAME/logs/heart-rankN.json, and looks after the launcher; `watchdog` counts how long the main
thread has not moved. It touches no file before it has to, so that a file server that hangs is a
hang like any other.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from pipeline.clock import Clock
from pipeline.ranks import rank, world_size
from pipeline.train.launcher import Launchers
from pipeline.train.stop import StopRequest

_FIRST_STEP = 3.0  # kernels are built in it
_LONGEST_TICK_S = 5.0
_TO_READ_HEARTS_S = 10.0


@dataclass
class Heart:
    """What a rank last said of itself, and how long ago, by the clock of the file server."""

    rank: int
    age_s: float | None  # None: never heard of
    host: str = "an unknown host"
    pid: int = 0
    beats: int = 0
    doing: str = ""

    def named(self) -> str:
        return f"rank {self.rank} on {self.host} (process {self.pid})"


class Watchdog:
    """`beat()` whenever something has moved; see the module."""

    def __init__(self, logs: Path, clock: Clock, limit_s: float) -> None:
        self._logs, self._clock, self._limit_s = logs, clock, limit_s
        self._tick_s = min(_LONGEST_TICK_S, limit_s / 10)
        self._beats, self._doing = 0, "starting"
        self._stopped = threading.Event()

    def beat(self, doing: str) -> None:
        """The main thread has come to `doing`."""
        self._doing = doing
        self._beats += 1

    @contextlib.contextmanager
    def watching(
        self, launchers: Launchers, stop: StopRequest, on_hang: Callable[[str], None]
    ) -> Iterator[None]:
        """Watch the body. `on_hang` gets the message, on a thread, before the process ends."""
        self._logs.mkdir(parents=True, exist_ok=True)
        self._stopped.clear()
        with contextlib.suppress(OSError):
            self._write_heart()  # a rank that freezes at once was here
        for name, work in (
            ("heart", lambda: self._keep_heart(launchers, stop)),
            ("watchdog", lambda: self._watch(on_hang)),
        ):
            threading.Thread(target=work, daemon=True, name=name).start()
        try:
            yield
        finally:
            self._stopped.set()
            with contextlib.suppress(OSError):
                _heart_file(self._logs, rank()).unlink(missing_ok=True)

    # The heart ------------------------------------------------------------------------------

    def _keep_heart(self, launchers: Launchers, stop: StopRequest) -> None:
        while not self._stopped.wait(self._tick_s):
            if launchers.gone():
                stop.ask("the launcher is gone")
            with contextlib.suppress(OSError):  # a full disk is no reason to die
                self._write_heart()

    def _write_heart(self) -> None:
        path = _heart_file(self._logs, rank())
        content = {
            "rank": rank(), "host": platform.node(), "pid": os.getpid(),
            **self._clock.to_dict(), "beats": self._beats, "doing": self._doing,
        }  # fmt: skip
        beside = path.with_suffix(".tmp")
        beside.write_text(json.dumps(content) + "\n", "utf-8")
        beside.replace(path)

    # The watchdog ---------------------------------------------------------------------------

    def _watch(self, on_hang: Callable[[str], None]) -> None:
        seen, silent_s, before = self._beats, 0.0, monotonic()
        first = self._clock.iteration
        while not self._stopped.wait(self._tick_s):
            now = monotonic()
            # A process that was stopped and goes on has not waited for anybody meanwhile.
            silent_s += min(now - before, 2 * self._tick_s)
            before = now
            if self._beats != seen:
                seen, silent_s = self._beats, 0.0
            if silent_s > self._limit_s * (_FIRST_STEP if self._clock.iteration == first else 1):
                self._leave(silent_s, on_hang)

    def _leave(self, silent_s: float, on_hang: Callable[[str], None]) -> None:
        here = (
            f"rank {rank()} on {platform.node()}: nothing has moved for {silent_s / 60:.3g} "
            f"minutes at step {self._clock.applied}, instance {self._clock.instances}, while "
            f"{self._doing}"
        )
        told: list[str] = []
        # On a thread: the file server may be what hangs.
        reporter = threading.Thread(
            target=lambda: self._report(here, told, on_hang), daemon=True, name="reporter"
        )
        reporter.start()
        reporter.join(_TO_READ_HEARTS_S)
        message = told[0] if told else f"{here}; {self._logs} does not answer either"
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback(sys.__stderr__)
            print(f"error: {message}", file=sys.__stderr__, flush=True)
        os._exit(1)

    def _report(self, here: str, told: list[str], on_hang: Callable[[str], None]) -> None:
        path = self._logs / f"hang-rank{rank()}.txt"
        hearts = [read_heart(self._logs, number) for number in range(world_size())]
        told.append(
            f"{here}; {blame(hearts, rank(), 4 * self._tick_s)}; nothing was saved, the same "
            f"command goes on from the last checkpoint; stacks are in {path}"
        )
        with path.open("w", encoding="utf-8") as file:
            print(told[0], file=file, flush=True)
            faulthandler.dump_traceback(file)
        on_hang(told[0])


def _heart_file(logs: Path, number: int) -> Path:
    return logs / f"heart-rank{number}.json"


def read_heart(logs: Path, number: int) -> Heart:
    """The heart of a rank, its age by the clock of the file server: those of hosts may differ."""
    path, probe = _heart_file(logs, number), logs / f"now-rank{rank()}"
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        probe.touch()
        age_s = probe.stat().st_mtime - path.stat().st_mtime
        probe.unlink()
    except (OSError, ValueError):
        return Heart(number, None)
    return Heart(number, age_s, *(content[key] for key in ("host", "pid", "beats", "doing")))


def blame(hearts: list[Heart], me: int, silent_after_s: float) -> str:
    """A sentence about the ranks that the others wait for."""
    others = [heart for heart in hearts if heart.rank != me]
    missing = [f"rank {heart.rank}" for heart in others if heart.age_s is None]
    silent = [h for h in others if h.age_s is not None and h.age_s > silent_after_s]
    furthest = max((heart.beats for heart in hearts), default=0)
    behind = [h for h in hearts if h not in silent and h.age_s is not None and h.beats < furthest]
    parts = [
        f"{h.named()} is silent since {h.age_s:.0f} s, while {h.doing}: its process was stopped or "
        "killed, or its host is dead"
        for h in silent
    ]
    parts += [f"{heart.named()} is behind, while {heart.doing}" for heart in behind]
    if missing:
        parts.append(f"nothing is known of {', '.join(missing)}: ended, or without this folder")
    if not parts:
        parts.append(
            "all ranks live and stand at the same place: look at the network between the hosts"
            if others
            else "look at the stacks"
        )
    return "; ".join(parts)
