"""A run whose ranks are killed again and again ends as if nothing had happened, to the last bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from time import sleep
from typing import Any

import psutil
import pytest

from tests.faults.driver import Attempt, assert_same_run, run_to_the_end, saving, step_of
from tests.pipeline.tiny import write_recipe

ROOT = Path(__file__).parents[2]
SPARSE = {
    "sparsity": {
        "kind": "mixed", "update_every": 4, "block": 4,
        "phases": [{"name": "sparse", "until": 0.6, "density": 0.5},
                   {"name": "restored", "until": 1.0, "density": 1.0}],
    }
}  # fmt: skip


def recipe_for(folder: Path, kind: str, steps: int, stage: int) -> Path:
    changes: dict[str, Any] = {
        "run__steps": steps, "engine__zero_stage": stage, "checkpoint__every_steps": 7,
        "checkpoint__keep_last": 2, "eval__every_steps": 0,
    }  # fmt: skip
    if kind == "transformer":
        changes |= SPARSE
    return write_recipe(folder, kind, **changes)


def kill_once(attempt: Attempt, run: Path, dice: random.Random, step: int) -> bool:
    """A random rank, at a random moment of the step after `step` or of the next save."""
    in_a_save = dice.random() < 0.3
    came = attempt.wait_for(lambda: step_of(run) >= step and (not in_a_save or saving(run)))
    if not came:
        return False
    sleep(dice.random() * 0.03)
    attempt.kill(dice.randrange(2))
    return True


@pytest.mark.parametrize(
    ("steps", "kills"), [(40, 3), pytest.param(200, 10, marks=pytest.mark.long)]
)
@pytest.mark.parametrize(("kind", "stage"), [("mlstm", 1), ("transformer", 0)])
def test_kills_change_nothing(
    tmp_path: Path, kind: str, stage: int, steps: int, kills: int
) -> None:
    recipe, runs = recipe_for(tmp_path, kind, steps, stage), tmp_path / "runs"
    run_to_the_end(2, recipe, ["run.name=straight"], runs / "straight")
    dice = random.Random(steps + stage)
    moments = sorted(dice.sample(range(1, steps - 1), kills))
    killed = 0
    for _ in range(kills + 1):
        attempt = Attempt(2, recipe, ["run.name=chaos"], runs / "chaos")
        if killed < kills and kill_once(attempt, runs / "chaos", dice, moments[killed]):
            killed += 1
            codes = attempt.end()
            assert -signal.SIGKILL in codes, attempt.log()
            (runs / "chaos/position").unlink()
            continue
        assert attempt.end() == [0, 0], attempt.log()
        break
    assert killed == kills
    assert_same_run(runs / "chaos", runs / "straight")


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.long), 2])
def test_the_supervisor_restarts_what_is_killed(tmp_path: Path, processes: int) -> None:
    """Through the real launcher: `python -m pipeline pretrain` and, for two ranks, torchrun."""
    recipe, runs = recipe_for(tmp_path, "mlstm", 40, 1), tmp_path / "runs"
    run_to_the_end(processes, recipe, ["run.name=straight"], runs / "straight")
    command = [sys.executable, "-m", "pipeline", "pretrain", str(recipe), "run.name=chaos",
               f"run.processes={processes}"]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        supervisor = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    while supervisor.poll() is None and step_of(runs / "chaos") < 20:
        sleep(0.001)
    ranks = [p for p in psutil.Process(supervisor.pid).children(recursive=True)
             if p.environ().get("RANK") or processes == 1]  # fmt: skip
    ranks[-1].kill()
    assert supervisor.wait(240) == 0, (tmp_path / "log").read_text()
    assert "crashed, restart 1: going on from global_step" in (tmp_path / "log").read_text()
    assert_same_run(runs / "chaos", runs / "straight")
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in ranks)
