"""The launcher above a rank: when it is gone, nobody would restart the run or clean up after it.

`deepspeed` on one host leaves its ranks running when it is ended, and so does a launcher that was
killed. A shell is no launcher: `nohup python run_pretrain.py RECIPE &` outlives it.
"""

from __future__ import annotations

import os

import psutil

from pipeline.environment import SUPERVISOR

_LAUNCHERS = (
    "torch.distributed.run", "torch.distributed.launch", "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
)  # fmt: skip
_COMMANDS = ("torchrun", "deepspeed")


class Launchers:
    """The launchers among this process' ancestors, as they were when this was made."""

    def __init__(self) -> None:
        supervisor = os.environ.get(SUPERVISOR)
        self.watched = [
            process
            for process in psutil.Process().parents()
            # An ancestor only: on another host the number belongs to somebody else.
            if str(process.pid) == supervisor or _launches(process)
        ]

    def gone(self) -> bool:
        """Whether one of them has ended."""
        return any(not _runs(process) for process in self.watched)


def _launches(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:  # of another user, or gone
        return False
    named = {os.path.basename(word) for word in words[:2]}  # `python .../bin/torchrun`
    return any(word in _LAUNCHERS for word in words) or bool(named & set(_COMMANDS))


def _runs(process: psutil.Process) -> bool:
    """A number given to another process meanwhile does not count, nor does a process that has
    ended and whose parent has not asked how."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
