from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import finish, run, start

from data_prep import claims
from data_prep.claims import DEAD_AFTER_SECONDS, Claim, TaskFolder, beating
from data_prep.manifest import HashedFile, write_atomic


@pytest.fixture
def phase(tmp_path: Path) -> TaskFolder:
    return TaskFolder(tmp_path / "phase")


def taken(phase: TaskFolder, name: str = "task") -> Claim:
    claim = phase.claim(name)
    assert claim is not None
    return claim


def files(phase: TaskFolder) -> list[str]:
    return sorted(path.name for path in phase.folder.iterdir())


CLAIM = """
import sys
from pathlib import Path
from data_prep.claims import TaskFolder
print(TaskFolder(Path(sys.argv[1])).claim("task"), flush=True)
sys.stdin.read()
"""


def claiming(phase: TaskFolder) -> subprocess.Popen[str]:
    """Another process that has claimed the task, and lives until it is ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(phase.folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline().startswith("Claim")
    return process


def forge(claim: Path, **changes: Any) -> None:
    claim.write_text(json.dumps(json.loads(claim.read_text()) | changes))


def test_a_task_is_claimed_once_and_done_once(phase: TaskFolder) -> None:
    claim = taken(phase)
    assert phase.claim("task") is None and phase.result("task") is None
    assert phase.owner("task") == f"process {os.getpid()} on {os.uname().nodename}"
    assert phase.claim("task-2") is not None  # its name begins alike
    assert phase.finish(claim, {"found": "é"})
    assert phase.result("task") == {"found": "é"}
    assert phase.claim("task") is None and phase.owner("task") is None
    assert files(phase) == ["task-2.claim-0", "task.done"]


def test_a_claim_that_a_power_cut_left_empty_is_void(phase: TaskFolder) -> None:
    taken(phase).path.write_bytes(b"")
    assert phase.owner("task") is None
    assert taken(phase).path.name == "task.claim-1"


@pytest.mark.parametrize("reaped", [True, False])
def test_the_claim_of_a_dead_process_is_taken_over_at_once(phase: TaskFolder, reaped: bool) -> None:
    process = claiming(phase)
    assert phase.claim("task") is None
    assert phase.owner("task") == f"process {process.pid} on {os.uname().nodename}"
    process.kill()
    if reaped:
        process.wait()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert phase.owner("task") is None
    assert phase.finish(taken(phase), {})
    assert files(phase) == ["task.done"]
    process.communicate()


def test_another_process_with_the_same_number_is_another(phase: TaskFolder) -> None:
    claim = taken(phase)
    forge(claim.path, started=json.loads(claim.path.read_text())["started"] - 60)
    assert phase.owner("task") is None and phase.claim("task") is not None


def test_another_host_is_trusted_while_it_beats(phase: TaskFolder) -> None:
    claim = taken(phase)
    # Its process numbers mean nothing here; nor does its clock, only that of the files.
    forge(claim.path, host="elsewhere boot pid:[1]", pid=2**30)
    for age, lives in [(0, True), (DEAD_AFTER_SECONDS - 5, True), (DEAD_AFTER_SECONDS + 5, False)]:
        beat = claim.path.stat().st_mtime - age
        os.utime(claim.path, (beat, beat))
        assert phase.owner("task") == ("process 1073741824 on elsewhere" if lives else None)
        assert (phase.claim("task") is None) == lives
    assert sorted(files(phase)) == ["task.claim-0", "task.claim-1"]


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_host_is_another_after_a_reboot_and_in_another_container(
    phase: TaskFolder, part: int
) -> None:
    claim = taken(phase)
    host = json.loads(claim.path.read_text())["host"].split()
    assert len(host) == 3
    host[part] = "other"
    forge(claim.path, host=" ".join(host), pid=2**30)
    assert phase.claim("task") is None  # though no such process runs here
    os.utime(claim.path, (0, 0))
    assert phase.claim("task") is not None


def test_a_heart_beats_while_work_is_done(
    phase: TaskFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.01)
    claim = taken(phase)
    os.utime(claim.path, (0, 0))
    with beating(claim):
        while claim.path.stat().st_mtime == 0:
            pass
    os.utime(claim.path, (0, 0))
    assert not any(thread.name == "heart" for thread in threading.enumerate())
    with beating(claim):  # when the claim is gone, the work goes on
        claim.path.unlink()
    assert claim.path.parent.is_dir() and not claim.path.exists()


def test_who_was_taken_over_does_not_finish(phase: TaskFolder) -> None:
    first = taken(phase)
    forge(first.path, host="elsewhere")
    os.utime(first.path, (0, 0))
    second = taken(phase)
    assert not phase.finish(first, {"by": "first"})
    assert phase.result("task") is None and phase.owner("task") is not None
    assert phase.finish(second, {"by": "second"})
    assert not phase.finish(first, {"by": "first"})
    assert phase.result("task") == {"by": "second"}
    assert files(phase) == ["task.done"]


@pytest.mark.parametrize("write", ["hashed", "atomic"])
def test_who_was_taken_over_breaks_nothing_by_going_on(tmp_path: Path, write: str) -> None:
    """It seemed dead and wakes up: it and the one that took over write the same file."""
    if write == "hashed":
        first = HashedFile(tmp_path / "a")
        first.write(b"begun ")
        second = HashedFile(tmp_path / "a")
        second.write(b"begun and ended")
        first.write(b"and ended")
        records = [process.close(tmp_path) for process in (first, second)]
        assert records[0].xxh3 == records[1].xxh3
    else:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: write_atomic(tmp_path / "a", "begun and ended"), range(50)))
    assert (tmp_path / "a").read_bytes() == b"begun and ended"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_hashed_file_is_on_the_disk_before_it_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is: a task that is done stays done after a power cut too."""
    seen = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(os.fstat(fd).st_size), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *where: (seen.append("placed"), replace(*where)))
    piece = bytes(range(256)) * 2**14  # as much as is begun to be written at a time
    file = HashedFile(tmp_path / "a")
    for _ in range(3):
        file.write(piece)
    file.write(b"end")
    record = file.close(tmp_path)
    assert seen == [3 * len(piece) + 3, "placed"]
    assert (tmp_path / "a").read_bytes() == 3 * piece + b"end"
    assert record.problem(tmp_path, verify=True) is None


def test_what_a_process_leaves_that_died_while_it_claimed(phase: TaskFolder) -> None:
    """A claim is written beside its place first; nobody deletes what a killed process left."""
    code = (
        "import os, sys; from pathlib import Path; from data_prep.claims import TaskFolder\n"
        "os.link = lambda *_: os._exit(9)\n"
        "TaskFolder(Path(sys.argv[1])).claim('task')"
    )
    assert run("-c", code, str(phase.folder)) == (9, "")
    assert len(files(phase)) == 1
    assert phase.owner("task") is None
    claim = taken(phase)
    assert phase.claim("task") is None
    assert phase.finish(claim, {}) and phase.result("task") == {}


def test_owners_who_finish_while_looked_at(
    phase: TaskFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = taken(phase)
    lives: Callable[..., bool] = TaskFolder._lives

    def then_finished(self: TaskFolder, path: Path) -> bool:
        found = lives(self, path)
        phase.finish(claim, {})
        return found

    monkeypatch.setattr(TaskFolder, "_lives", then_finished)
    assert phase.owner("task") in (None, f"process {os.getpid()} on {os.uname().nodename}")


def test_a_folder_that_has_gone_is_not_made_again(phase: TaskFolder) -> None:
    """The stage is finished: its folder was renamed."""
    shutil.rmtree(phase.folder)
    with pytest.raises(FileNotFoundError):
        phase.claim("task")
    shutil.rmtree(phase.folder.parent)
    with pytest.raises(FileNotFoundError):
        TaskFolder(phase.folder)
    assert not phase.folder.parent.exists()


RACE = """
import os, sys, time
from pathlib import Path
from data_prep.claims import TaskFolder
phase = TaskFolder(Path(sys.argv[1]))
log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
while not Path(sys.argv[3]).exists():
    pass
names = [f"task-{number}" for number in range(150)]
while names:
    for name in list(names):
        claim = phase.claim(name)
        if claim is not None:
            os.write(log, f"{name}\\n".encode())
            assert phase.finish(claim, {"name": name})
        if phase.result(name) is not None:
            names.remove(name)
"""


def test_three_processes_race_for_each_task(phase: TaskFolder, tmp_path: Path) -> None:
    log, signal = tmp_path / "log", tmp_path / "go"
    log.touch()
    racers = [start("-c", RACE, str(phase.folder), str(log), str(signal)) for _ in range(3)]
    signal.touch()
    assert [finish(racer) for racer in racers] == [(0, "")] * 3
    done = log.read_text().split()
    assert sorted(done) == sorted(f"task-{number}" for number in range(150))
    assert len(files(phase)) == 150
