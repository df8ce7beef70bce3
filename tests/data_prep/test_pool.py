from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from conftest import PREPARE, assert_same, contents, finish, run, start

import data_prep.prepare as stage
from data_prep.claims import Claim, TaskFolder
from data_prep.errors import DataError, PipelineError, RecipeError, StoppedAndSaved
from data_prep.pool import ALL, Crew, Share, Task, disk_errors, run_tasks
from data_prep.progress import METER

# What one task does is a line of a log that all processes append to.
Job = tuple[str, str]  # the log, and what to do


def logged(job: Job) -> dict[str, Any]:
    log, what = job
    stream = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(stream, f"{what}\n".encode())
    os.close(stream)
    if what.startswith("fail"):
        raise DataError(f"{what}: as told")
    if what.startswith("die") and not Path(f"{log}.{what}").exists():
        Path(f"{log}.{what}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if what.startswith("wait"):
        Path(f"{log}.{what}").touch()
        while not Path(f"{log}.go").exists():
            time.sleep(0.01)
    return {"did": what}


def tasks_for(log: Path | str, names: list[str]) -> list[Task]:
    return [Task(f"task-{number}", (str(log), name), 1) for number, name in enumerate(names)]


def drive(folder: str, log: str, processes: str, *names: str) -> None:
    """What a process of its own does, for `driver`."""
    while not Path(f"{log}.start").exists():
        pass
    with Crew(int(processes)) as crew:
        results = run_tasks("x", Path(folder), tasks_for(log, list(names)), logged, crew)
    assert results == [{"did": name} for name in names]


def driver(folder: Path, log: Path, processes: int, names: list[str]) -> Any:
    code = "import sys, test_pool; test_pool.drive(*sys.argv[1:])"
    return start("-c", code, str(folder), str(log), str(processes), *names)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "phase"


Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def do(folder: Path, log: Path) -> Run:
    def do(names: list[str], processes: int = 1, share: Share = ALL) -> list[dict[str, Any]]:
        with Crew(processes) as crew:
            return run_tasks("x", folder, tasks_for(log, names), logged, crew, share)

    return do


def lines(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


NAMES = [f"job-{number}" for number in range(12)]


@pytest.mark.parametrize("processes", [1, 2])
def test_results_in_order_and_nothing_twice(do: Run, log: Path, processes: int) -> None:
    assert do([]) == []
    assert do(NAMES[:5], processes) == [{"did": name} for name in NAMES[:5]]
    assert do(NAMES, processes) == [{"did": name} for name in NAMES]
    assert do(NAMES) == [{"did": name} for name in NAMES]
    assert sorted(lines(log)) == sorted(NAMES)


@pytest.mark.parametrize("processes", [1, 2])
def test_what_fails_stops_the_run_and_keeps_what_is_done(
    do: Run, folder: Path, log: Path, processes: int
) -> None:
    names = [*NAMES[:4], "fail", *NAMES[4:]]
    with pytest.raises(DataError, match="fail: as told"):
        do(names, processes)
    done = {path.stem for path in folder.glob("*.done")}
    assert "task-4" not in done and len(done) == len(set(lines(log)) - {"fail"}) > 0
    # The task is free: this process, which lives on, may try again.
    assert TaskFolder(folder).owner("task-4") is None
    names[4] = "mended"
    assert do(names, processes) == [{"did": name} for name in names]
    assert len(lines(log)) == len(names) + 1


def test_a_worker_that_is_killed(do: Run, log: Path) -> None:
    names = ["die", *NAMES[:3]]
    with pytest.raises(PipelineError, match="a worker process was killed .out of memory"):
        do(names, 2)
    assert do(names, 2) == [{"did": name} for name in names]
    assert all(lines(log).count(name) <= 2 for name in names)


def count(times: int) -> None:
    for _ in range(times):
        METER.add(3, documents=1)


def count_until_killed() -> None:
    threading.Thread(target=count, args=[10**9], daemon=True).start()
    time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def count_in_workers() -> None:
    """What a process of its own does: workers end in the middle of counting, others do not."""
    for _ in range(6):
        with pytest.raises(BrokenProcessPool), Crew(2) as crew:
            crew.pool().submit(count_until_killed).result()
    before = METER.read()
    with Crew(3) as crew:
        list(crew.pool().map(count, [1000] * 9))
        assert METER.read() == (before[0] + 27000, before[1] + 9000)
    count(1)
    assert METER.read() == (before[0] + 27003, before[1] + 9001)


def test_what_workers_count() -> None:
    """One that is killed while it counts takes nothing with it that others wait for."""
    assert run("-c", "import test_pool; test_pool.count_in_workers()") == (0, "")


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_at_the_same_time_share_the_tasks(
    folder: Path, log: Path, processes: int
) -> None:
    names = [f"job-{number}" for number in range(150)]
    drivers = [driver(folder, log, processes, names) for _ in range(2)]
    log.with_name("log.start").touch()
    assert [finish(process)[0] for process in drivers] == [0, 0]
    assert sorted(lines(log)) == sorted(names)


def test_a_task_that_another_has_is_waited_for(do: Run, folder: Path, log: Path) -> None:
    """The other process is killed in the middle of it; its workers end by themselves."""
    log.with_name("log.start").touch()
    other = driver(folder, log, 2, ["wait-0", "wait-1"])
    while len(list(log.parent.glob("log.wait-*"))) < 2:
        assert other.poll() is None
        time.sleep(0.01)
    phase = TaskFolder(folder)
    assert phase.claim("task-0") is None and phase.owner("task-1") is not None
    other.kill()
    other.wait()
    names = ["wait-0", "wait-1"]
    log.with_name("log.go").touch()
    assert do(names) == [{"did": name} for name in names]
    assert len(lines(log)) <= 4
    finish(other)


def test_a_task_that_was_taken_over_is_waited_for(folder: Path) -> None:
    """This process had seemed dead: what it has done counts only when the new owner is through."""
    phase = TaskFolder(folder)

    def work(_: Any) -> dict[str, Any]:
        claim = folder / "task.claim-1"
        shutil.copy(folder / "task.claim-0", claim)
        new_owner = Claim("task", claim)
        threading.Timer(0.5, phase.finish, (new_owner, {"by": "the new owner"})).start()
        return {"by": "the old one"}

    found = run_tasks("x", folder, [Task("task", None, 1)], work, Crew())
    assert found == [{"by": "the new owner"}]


def test_parts_that_live_are_waited_for(do: Run, folder: Path, log: Path) -> None:
    """Between two tasks nobody owns one; a part that lives will."""
    asked = []

    def at_work() -> list[Share]:
        asked.append(1)
        if len(asked) == 2:
            do(NAMES, share=Share(1, 2))
        return [Share(1, 2)]

    tasks = tasks_for(log, NAMES)
    found = run_tasks("x", folder, tasks, logged, Crew(), Share(0, 2), at_work)
    assert found == [{"did": name} for name in NAMES] and len(asked) == 2
    assert sorted(lines(log)) == sorted(NAMES)


def test_parts_that_wait_for_the_same_missing_one_stop(do: Run, folder: Path, log: Path) -> None:
    tasks = tasks_for(log, NAMES)
    shares = [Share(0, 3), Share(1, 3)]
    with pytest.raises(StoppedAndSaved, match="8 tasks of other parts"):
        do(NAMES, share=Share(0, 3))
    with pytest.raises(StoppedAndSaved, match="4 tasks of other parts"):
        run_tasks("x", folder, tasks, logged, Crew(), Share(1, 3), lambda: shares)


def test_parts_of_the_tasks(do: Run, log: Path) -> None:
    with pytest.raises(StoppedAndSaved, match="8 tasks of other parts are not and nobody works"):
        do(NAMES, share=Share(0, 3))
    assert lines(log) == NAMES[::3]
    with pytest.raises(StoppedAndSaved, match="4 tasks of other parts"):
        do(NAMES, share=Share(2, 3))
    assert do(NAMES, share=Share(1, 3)) == [{"did": name} for name in NAMES]
    assert do(NAMES, share=Share(0, 3)) == [{"did": name} for name in NAMES]
    assert sorted(lines(log)) == sorted(NAMES)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_disks_that_refuse_are_no_crash(tmp_path: Path, code: int) -> None:
    with pytest.raises(RecipeError, match="x: cannot write y .* what is done is kept"):
        with disk_errors(Path("x")):
            raise OSError(code, os.strerror(code), "y")
    with pytest.raises(FileNotFoundError), disk_errors(Path("x")):
        (tmp_path / "absent").read_text()


def test_two_commands_at_once_make_one_result(recipe: Path) -> None:
    arguments = ("recipe.yaml", "data.shard_tokens=500", "tokenizer={kind: bpe, vocab_size: 300}")
    assert run(*PREPARE, *arguments, "data.folder=alone")[0] == 0
    for workers in ("1", "2"):
        both = [start(*PREPARE, *arguments, "--workers", workers) for _ in range(2)]
        outputs = [finish(process) for process in both]
        assert [code for code, _ in outputs] == [0, 0], outputs
        assert_same(contents("prepared"), contents("alone"))
        names = sorted(path.name for path in Path().iterdir())
        assert names == ["alone", "corpus.jsonl", "prepared", "recipe.yaml"]
        shutil.rmtree("prepared")


def test_another_recipe_is_refused_while_one_runs(recipe: Path) -> None:
    """The first is stopped in its middle; the other does not touch what it has done."""
    first = start(*PREPARE, "recipe.yaml", "data.shard_tokens=100")
    work = Path("prepared.tmp/work/encode")
    while not list(work.glob("*.done")):
        assert first.poll() is None
    first.send_signal(signal.SIGSTOP)
    try:
        code, said = run(*PREPARE, "recipe.yaml", "data.seed=1")
        assert code == 2 and f"process {first.pid} on " in said and said.count("error: ") == 1
        assert "is preparing another recipe or other inputs in prepared.tmp" in said
    finally:
        first.send_signal(signal.SIGCONT)
    assert finish(first)[0] == 0
    assert run(*PREPARE, "recipe.yaml", "data.shard_tokens=100", "data.folder=alone")[0] == 0
    assert_same(contents("prepared"), contents("alone"))


def test_another_recipe_takes_the_place_of_one_that_died(recipe: Path) -> None:
    first = start(*PREPARE, "recipe.yaml", "data.shard_tokens=100")
    while not list(Path("prepared.tmp/work/encode").glob("*.done")):
        assert first.poll() is None
    first.kill()
    finish(first)
    for target in ("prepared", "alone"):
        assert run(*PREPARE, "recipe.yaml", "data.seed=1", f"data.folder={target}")[0] == 0
    assert_same(contents("prepared"), contents("alone"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_parts_one_after_another(recipe: Path, workers: str) -> None:
    arguments = ("recipe.yaml", "data.shard_tokens=500", "tokenizer={kind: bpe, vocab_size: 300}")
    assert run(*PREPARE, *arguments, "data.folder=alone")[0] == 0
    codes, said = [], ""
    while 0 not in codes and len(codes) < 20:
        part = len(codes) % 2 + 1
        code, said = run(*PREPARE, *arguments, "--workers", workers, "--tasks", f"{part}/2")
        codes.append(code)
        assert ("error: " in said) == (code == 75)
    assert set(codes[:-1]) == {75} and codes[-1] == 0, said
    assert_same(contents("prepared"), contents("alone"))
    assert run(*PREPARE, *arguments, "--tasks", "1/2") == (0, "prepared: up to date\n")


def test_parts_at_the_same_time(recipe: Path) -> None:
    for number in range(4):
        shutil.copy("corpus.jsonl", f"corpus-{number}.jsonl")
    command = (*PREPARE, "--workers", "1", "recipe.yaml", "data.shard_tokens=3000")
    parts = [start(*command, "--tasks", f"{part}/2") for part in (1, 2)]
    assert [finish(part)[0] for part in parts] == [0, 0]
    assert run(*command, "data.folder=alone")[0] == 0
    assert_same(contents("prepared"), contents("alone"))


@pytest.mark.parametrize("tasks", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3"])
def test_parts_that_make_no_sense(recipe: Path, tasks: str) -> None:
    code, said = run(*PREPARE, "recipe.yaml", "--tasks", tasks)
    assert code == 2 and "expected I/N" in said
    assert not Path("prepared").exists()


@pytest.mark.parametrize("late", [False, True])
def test_two_recipes_that_begin_at_once(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """The second runs just before, or just after, the first has written what it makes: one of
    them is refused, and the folder is wholly that of the other."""
    second = ["data.split.salt=second"]
    stage.prepare("recipe.yaml", [*second, "data.folder=second-alone"])
    stage.prepare("recipe.yaml", ["data.folder=first-alone"])
    original = stage.open_scratch
    refused: list[str] = []

    def run(name: str, overrides: list[str]) -> None:
        try:
            stage.prepare("recipe.yaml", overrides)
        except RecipeError:
            refused.append(name)

    def opened(*arguments: Any) -> None:
        monkeypatch.setattr(stage, "open_scratch", original)
        if late:
            original(*arguments)
            run("second", second)
        else:
            run("second", second)
            original(*arguments)

    monkeypatch.setattr(stage, "open_scratch", opened)
    run("first", [])
    assert refused == (["second"] if late else ["first"])
    assert_same(contents("prepared"), contents("first-alone" if late else "second-alone"))


def test_workers_begin_with_what_they_need_and_nothing_else() -> None:
    code = (
        "from data_prep.workers import worker_context; worker_context()\n"
        "from data_prep.pool import Crew\n"
        "with Crew(2) as crew:\n"
        "    there = \"'data_prep.encoding' in __import__('sys').modules\"\n"
        "    threads = \"len(__import__('threading').enumerate())\"\n"
        "    print(*(crew.pool().submit(eval, what).result() for what in (there, threads)))"
    )
    assert run("-c", code) == (0, "True 2\n")  # the second thread watches the parent
