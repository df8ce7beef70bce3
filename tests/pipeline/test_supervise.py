"""The supervisor, over small scripts that end as training can end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest

from data_prep.errors import PipelineError, RecipeError
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.stages.launch import launch_pretrain
from pipeline.stages.supervise import Supervisor
from pipeline.train.lock import RunLock
from tests.pipeline.tiny import recipe_tree

# What every script begins with: how many of its kind came before it, and what training leaves.
BEGIN = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
turn = len(list(folder.glob("turn*")))
(folder / f"turn{turn}").touch()
def position(step): (folder / "position").write_text(f"{step} {8 * step} {8 * step + 8}")
def checkpoint(step): (folder / "checkpoints" / f"global_step{step}").mkdir(parents=True)
def leave(code): pathlib.Path(os.environ["PIPELINE_EXIT_CODE_FILE"]).write_text(str(code))
"""


def supervisor(
    folder: Path, script: str, max_restarts: int = 2, once_saved: Sequence[str] = ()
) -> Supervisor:
    command = [sys.executable, "-c", BEGIN + script, str(folder)]
    return Supervisor(command, RunFolder(folder), max_restarts, once_saved)


def turns(folder: Path) -> int:
    return len(list(folder.glob("turn*")))


def test_a_run_that_ends_well_is_left_alone(tmp_path: Path) -> None:
    assert supervisor(tmp_path, "").run() == 0
    assert turns(tmp_path) == 1


@pytest.mark.parametrize("code", [2, 3, 4, 75])
def test_the_code_is_the_one_that_training_left(tmp_path: Path, code: int) -> None:
    """Launchers end with 1 whatever their ranks end with."""
    assert supervisor(tmp_path, f"leave({code}); sys.exit(1)").run() == code
    assert turns(tmp_path) == 1


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    (tmp_path / "position").write_text("5 40 48")
    with pytest.raises(RecipeError, match="is in use by process"):
        supervisor(tmp_path, "").run()
    lock.release()
    assert turns(tmp_path) == 0 and (tmp_path / "position").exists()
    assert supervisor(tmp_path, "").run() == 0
    assert not list(tmp_path.glob("exit-code*"))


def test_after_a_crash_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = """
if turn < 4:
    position(turn); checkpoint(turn)
    os.kill(os.getpid(), 9)
"""
    # Four crashes, but each time it had come further.
    assert supervisor(tmp_path, script, max_restarts=1).run() == 0
    assert turns(tmp_path) == 5
    assert "crashed, restart 1: going on from global_step3" in capsys.readouterr().err


def test_crashes_without_a_checkpoint_are_counted(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="crashed 3 times without a new checkpoint"):
        supervisor(tmp_path, "position(turn); sys.exit(1)").run()
    assert turns(tmp_path) == 3


def test_a_step_that_crashes_twice_is_named(tmp_path: Path) -> None:
    script = "checkpoint(turn); position(5); sys.exit(1)"
    with pytest.raises(PipelineError, match=r"step after 5, .*40 to 47.*\[\[40,48\]\]"):
        supervisor(tmp_path, script, max_restarts=9).run()
    assert turns(tmp_path) == 2


def test_crashes_before_the_first_step_are_no_such_step(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="crashed 4 times"):
        supervisor(tmp_path, "sys.exit(1)", max_restarts=3).run()


def test_a_rolled_back_run_is_started_again(tmp_path: Path) -> None:
    script = """
rolled = turn == 0
(folder / "status.json").write_text('{"state": "%s"}' % ("rolled back" if rolled else "finished"))
leave(75 if rolled else 0)
"""
    assert supervisor(tmp_path, script).run() == 0
    assert turns(tmp_path) == 2


def send_when_started(folder: Path, *numbers: signal.Signals) -> threading.Thread:
    def send() -> None:
        while not (folder / "ready").exists():
            sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)
            sleep(0.2)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


WAITS = """
(folder / "ready").touch()
while not (folder / "STOP").exists(): time.sleep(0.01)
leave(75)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_becomes_a_stop(tmp_path: Path, number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    thread = send_when_started(tmp_path, number)
    assert supervisor(tmp_path, WAITS).run() == code
    thread.join()
    assert turns(tmp_path) == 1
    assert not (tmp_path / "STOP").exists()
    assert signal.getsignal(number) == before


def test_a_second_signal_kills(tmp_path: Path) -> None:
    thread = send_when_started(tmp_path, signal.SIGTERM, signal.SIGTERM)
    began = monotonic()
    assert supervisor(tmp_path, "(folder / 'ready').touch(); time.sleep(60)").run() == 1
    thread.join()
    assert monotonic() - began < 30
    assert turns(tmp_path) == 1 and not (tmp_path / "STOP").exists()


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """A launcher that dies leaves its ranks in a session of their own."""
    script = """
import subprocess
orphan = subprocess.Popen(["sleep", "60"], start_new_session=True)
(folder / "orphan").write_text(str(orphan.pid))
leave(4)
os.kill(os.getpid(), 9)
"""
    assert supervisor(tmp_path, script).run() == 4
    assert not psutil.pid_exists(int((tmp_path / "orphan").read_text()))


def test_a_restart_may_be_told_something_else_once_there_is_a_checkpoint(tmp_path: Path) -> None:
    """To begin with nothing, `run.resume=never`, would then be a refusal."""
    script = """
(folder / f"told{turn}").write_text(" ".join(sys.argv[2:]))
if turn < 2:
    position(turn)
    if turn == 1: checkpoint(5)
    sys.exit(1)
"""
    assert supervisor(tmp_path, script, once_saved=["run.resume=auto"]).run() == 0
    assert [(tmp_path / f"told{n}").read_text() for n in range(3)] == ["", "", "run.resume=auto"]


def test_the_code_of_an_earlier_process_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    """In a container every supervisor has the same number."""
    (tmp_path / f"exit-code-{os.getpid()}").write_text("0")
    with pytest.raises(PipelineError, match="crashed"):
        supervisor(tmp_path, "os.kill(os.getpid(), 9)", max_restarts=0).run()


def test_a_request_to_stop_is_heeded_by_a_run_that_rolls_back(tmp_path: Path) -> None:
    script = """
(folder / "ready").touch()
while not (folder / "STOP").exists(): time.sleep(0.01)
(folder / "status.json").write_text('{"state": "rolled back"}'); leave(75)
"""
    sender = send_when_started(tmp_path, signal.SIGTERM)
    assert supervisor(tmp_path, script).run() == 75
    sender.join()
    assert turns(tmp_path) == 1


@pytest.mark.parametrize("status", [None, {"state": "crashed", "step": 3}])
def test_training_that_says_nothing_of_its_end_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: dict[str, object] | None
) -> None:
    recipe = Recipe.model_validate(recipe_tree(tmp_path, "mlstm"))
    folder = RunFolder(recipe.run_folder)
    if status is not None:
        folder.write_json(folder.status, status)
    monkeypatch.setattr(Supervisor, "run", lambda self: 0)
    with pytest.raises(PipelineError, match="expected 'finished': run the same command"):
        launch_pretrain(recipe)


def test_a_start_that_is_refused_leaves_the_recipe_of_the_run_that_trains(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(recipe_tree(tmp_path, "mlstm"))
    lock = RunLock(recipe.run_folder)
    (recipe.run_folder / "recipe.yaml").write_text("of the run that trains")
    with pytest.raises(RecipeError, match="is in use by process"):
        launch_pretrain(recipe)
    assert (recipe.run_folder / "recipe.yaml").read_text() == "of the run that trains"
    lock.release()


def test_a_refused_recipe_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate(recipe_tree(tmp_path, "mlstm"))
    monkeypatch.setattr(Supervisor, "run", lambda self: 2)
    with pytest.raises(RecipeError, match="exit code 2"):
        launch_pretrain(recipe)
    assert [path.name for path in recipe.run_folder.iterdir()] == ["lock"]
