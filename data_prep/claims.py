"""Who does which task, when several processes and hosts share one folder.

A task is done when `NAME.done` stands. Whoever wants a task creates `NAME.claim-G`, which only
one process can; G counts the owners so far. A claim is void when its owner has died: known at
once on the same host, and elsewhere by a heart that has stopped beating. The next owner then
creates generation G + 1. Nothing is ever deleted to take over, so two cannot take over at once.

Times are those of the file server on both sides of a comparison: clocks of hosts may differ.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from .manifest import create_new, write_atomic

BEAT_SECONDS = 10.0
DEAD_AFTER_SECONDS = 180.0  # without a beat, on another host


@dataclass(frozen=True)
class Claim:
    """The right of this process to do one task."""

    name: str
    path: Path


class TaskFolder:
    """The claims and results of the tasks of one phase."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Not the parents: when the scratch folder has been put in place, nothing may revive it.
        folder.mkdir(exist_ok=True)

    def result(self, name: str) -> dict[str, Any] | None:
        """What a finished task returned; None while it is not done. FileNotFoundError when the
        whole folder is gone, because somebody has finished the stage."""
        try:
            return json.loads((self.folder / f"{name}.done").read_bytes())  # type: ignore[no-any-return]
        except FileNotFoundError:
            if not self.folder.exists():
                raise
            return None

    def claim(self, name: str) -> Claim | None:
        """The claim on a task; None when it is done or a living process has it."""
        if self.result(name) is not None:
            return None
        generation, owner = self._newest(name)
        if owner is not None and self._lives(owner):
            return None
        path = self.folder / f"{name}.claim-{generation + 1}"
        if not create_new(path, json.dumps(_this_process())):
            return None
        if self.result(name) is not None:  # its owner finished while this one was looking
            path.unlink()
            return None
        return Claim(name, path)

    def owner(self, name: str) -> str | None:
        """The living owner of a task as words, None when there is none."""
        _, path = self._newest(name)
        if path is None or not self._lives(path) or (signed := _signature(path)) is None:
            return None
        return f"process {signed['pid']} on {signed['host'].split()[0]}"

    def finish(self, claim: Claim, result: dict[str, Any]) -> bool:
        """Record a task as done. False when another process has taken it over meanwhile, because
        this one seemed dead: its result, which is the same, stands."""
        if self._newest(claim.name)[1] != claim.path:
            return False
        write_atomic(self.folder / f"{claim.name}.done", json.dumps(result, ensure_ascii=False))
        for path in self.folder.glob(f"{claim.name}.claim-*"):
            path.unlink(missing_ok=True)
        return True

    def _newest(self, name: str) -> tuple[int, Path | None]:
        paths = {int(p.suffix.rpartition("-")[2]): p for p in self.folder.glob(f"{name}.claim-*")}
        newest = max(paths, default=-1)
        return newest, paths.get(newest)

    def _lives(self, path: Path) -> bool:
        signed = _signature(path)
        if signed is None:
            return False
        if signed["host"] == _host():
            return _runs(signed["pid"], signed["started"])
        try:
            beat = path.stat().st_mtime
        except FileNotFoundError:
            return False
        return self._now() - beat < DEAD_AFTER_SECONDS

    def _now(self) -> float:
        """The present by the clock of the file server."""
        probe = self.folder / f"now-{uuid.uuid4().hex}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()


@contextmanager
def beating(claim: Claim) -> Iterator[None]:
    """While the body runs, show others that this process lives; when it fails, let go of the
    claim, for which nobody need wait then."""
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(BEAT_SECONDS):
            try:
                os.utime(claim.path)
            except OSError:  # taken over, or the disk is full: `finish` finds out
                return

    thread = threading.Thread(target=beat, daemon=True, name="heart")
    thread.start()
    try:
        yield
    except BaseException:
        claim.path.unlink(missing_ok=True)
        raise
    finally:
        stopped.set()
        thread.join()


def _signature(path: Path) -> dict[str, Any] | None:
    """Who made a claim; None when its task has just been finished, and when a power cut has left
    it empty."""
    try:
        return json.loads(path.read_bytes())  # type: ignore[no-any-return]
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "started": psutil.Process(pid).create_time()}


def _runs(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return (
            abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False


@cache
def _host() -> str:
    """A name for where process numbers mean something: host, boot and process namespace."""
    parts = [platform.node() or "host"]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            linked = os.path.islink(path)
            parts.append(os.readlink(path) if linked else Path(path).read_text().strip())
        except OSError:
            continue
    return " ".join(parts)
