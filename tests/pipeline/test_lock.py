"""One run per folder."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.errors import RecipeError
from pipeline.train.lock import RunLock

HOLDS = """
import sys, time
from pathlib import Path
from pipeline.train.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_run_is_refused_and_told_whose_the_folder_is(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / "r")],
                             stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])  # fmt: skip
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(RecipeError, match=f"in use by process {other.pid} on .* since"):
        RunLock(tmp_path / "r")
    other.kill()  # -9: nothing is cleaned up, and nothing need be
    other.wait()
    RunLock(tmp_path / "r").release()
    RunLock(tmp_path / "r").release()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be written"):
        RunLock(tmp_path / "file" / "r")


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RecipeError, match="cannot be locked .*mount its file system with locks"):
        RunLock(tmp_path)
