"""One run per folder: the right to write into it, which ends with the process that has it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from pathlib import Path
from time import strftime

from data_prep.errors import RecipeError


class RunLock:
    """Held from its making until `release`, or until this process dies in whatever way.

    RecipeError names the owner where another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise RecipeError(
                f"{folder} cannot be written ({error.strerror}): set run.folder to a place that can"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(
                f"{folder} is in use by {_owner(folder / 'lock')}: wait for it, stop it with "
                f"`touch {folder / 'STOP'}`, or choose another run.name"
            ) from None
        except OSError as error:
            raise RecipeError(
                f"{folder} cannot be locked ({error.strerror}), and two runs must not write there "
                "at once: mount its file system with locks (Lustre: -o flock), or set another "
                "run.folder"
            ) from None
        self._file.truncate(0)
        owner = {"pid": os.getpid(), "host": platform.node(), "since": strftime("%F %T")}
        self._file.write(json.dumps(owner) + "\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text("utf-8"))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError):  # it is just being written
        return "another process"
