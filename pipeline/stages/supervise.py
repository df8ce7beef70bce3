"""Keeping a training run going: restarted after a crash, stopped when asked, no process left over.

The processes of a run tell how they ended by a file, since launchers change exit codes, and where
they are by another, so that a step that fails again and again is known.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import psutil

from data_prep.errors import PipelineError
from pipeline.environment import EXIT_CODE_FILE, SUPERVISOR
from pipeline.run_folder import RunFolder
from pipeline.train.checkpoint import list_checkpoints
from pipeline.train.lock import RunLock

_SUBREAPER = 36  # of Linux's prctl: orphans of our children become our children
_CRASHED = 1


class Supervisor:
    """Runs `command`, which trains into `folder`, until it ends for a reason of its own."""

    def __init__(
        self,
        command: Sequence[str],
        folder: RunFolder,
        max_restarts: int,
        once_saved: Sequence[str] = (),
    ) -> None:
        """`once_saved` are arguments of restarts after which there is something to go on from."""
        self._command, self._folder, self._max_restarts = command, folder, max_restarts
        self._once_saved = once_saved
        self._asked: signal.Signals | None = None
        self._code_file = folder.root / f"exit-code-{os.getpid()}"

    def refuse_company(self) -> None:
        """RecipeError where another process trains into the folder."""
        RunLock(self._folder.root).release()

    def run(self) -> int:
        """The documented exit code. PipelineError after too many crashes, or two at one step;
        RecipeError where another process trains into the folder."""
        self.refuse_company()
        restarts, failed_at, newest = 0, None, self._newest()
        began_with = newest
        while True:
            code = self._run_once(self._once_saved if self._newest() != began_with else ())
            if self._asked is signal.SIGINT and code != 0:
                return 130
            if code != _CRASHED and (self._asked is not None or not self._rolled_back(code)):
                return code
            if code == _CRASHED:
                position = self._folder.read_position()
                if self._asked is not None:
                    return code
                if position is not None and position == failed_at:
                    raise PipelineError(self._failed_twice(position))
                restarts = 1 if self._newest() != newest else restarts + 1
                failed_at, newest = position, self._newest()
                if restarts > self._max_restarts:
                    raise PipelineError(
                        f"training crashed {restarts} times without a new checkpoint "
                        "(run.max_restarts), see its messages above"
                    )
            self._say(code, restarts)

    def _newest(self) -> str | None:
        found = list_checkpoints(self._folder.checkpoints)
        return found[0].name if found else None

    def _rolled_back(self, code: int) -> bool:
        status = self._folder.read_json(self._folder.status) or {}
        return code == 75 and status.get("state") == "rolled back"

    def _failed_twice(self, position: tuple[int, int, int]) -> str:
        step, first, end = position
        return (
            f"training crashed twice in the step after {step}, which reads instances {first} to "
            f"{end - 1}: see the messages above; batch.skip_instances=[[{first},{end}]] passes "
            "them over"
        )

    def _say(self, code: int, restarts: int) -> None:
        why = f"crashed, restart {restarts}" if code == _CRASHED else "rolled back"
        print(f"training {why}: going on from {self._newest() or 'the beginning'}", file=sys.stderr)

    def _run_once(self, arguments: Sequence[str]) -> int:
        self._folder.position.unlink(missing_ok=True)
        self._code_file.unlink(missing_ok=True)  # of an earlier process of this number
        own = {SUPERVISOR: str(os.getpid()), EXIT_CODE_FILE: str(self._code_file)}
        with _subreaper():
            # A session of its own: the keyboard's signals reach us alone, and we pass them on.
            child = subprocess.Popen(
                [*self._command, *arguments], env=os.environ | own, start_new_session=True
            )
            with self._signals_passed_on(child):
                code = child.wait()
            _kill_leftovers()
        if self._asked is not None:  # a run that was killed has left it there
            self._folder.stop_file.unlink(missing_ok=True)
        if self._code_file.is_file():
            code = int(self._code_file.read_text())
            self._code_file.unlink()
            return code
        return 0 if code == 0 else _CRASHED

    @contextmanager
    def _signals_passed_on(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        """The first request becomes a STOP file, which no launcher loses; a second one kills."""

        def caught(number: int, frame: FrameType | None) -> None:
            if self._asked is None:
                self._asked = signal.Signals(number)
                self._folder.stop_file.touch()
            else:
                os.killpg(child.pid, signal.SIGKILL)

        requests = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        before = {number: signal.signal(number, caught) for number in requests}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _subreaper() -> Iterator[None]:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux
    if prctl is not None:
        prctl(_SUBREAPER, 1, 0, 0, 0)
    yield
    if prctl is not None:
        prctl(_SUBREAPER, 0, 0, 0, 0)


def _kill_leftovers() -> None:
    """Whatever the launcher has left behind: ranks wait for each other for ever."""
    for process in psutil.Process().children(recursive=True):
        try:
            if process.environ().get(SUPERVISOR) == str(os.getpid()):
                process.kill()
                process.wait(10)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.TimeoutExpired):
            continue
