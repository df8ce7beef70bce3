"""Every documented exit code, from plain `python` and from `python -m pipeline pretrain`.

What `tests/e2e/test_bad_input.py` (2, 3, 4) and `test_launchers.py` (75, 130) see of the one is not
repeated here.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep import errors
from tests.e2e.commands import ROOT, environment, python, refused
from tests.pipeline.tiny import losses, write_recipe

PRETRAIN = ("-m", "pipeline", "pretrain")
CODES = (0, 1, 2, 3, 4, 75, 130)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("codes"), "mlstm")


def test_the_same_codes_are_documented_everywhere() -> None:
    kinds = [e for e in vars(errors).values() if isinstance(e, type)]
    raised = {kind.exit_code for kind in kinds if issubclass(kind, errors.PipelineError)}
    assert raised | {0, 130} == set(CODES)
    for name in ("README.md", "docs/launchers.md"):
        rows = re.findall(r"^\| (\d+) \|", (ROOT / name).read_text(), re.MULTILINE)
        assert tuple(map(int, rows)) == CODES, name
    assert tuple(int(n) for n in re.findall(r"^(\d+) +\w", errors.__doc__ or "", re.M)) == CODES


@pytest.mark.long
def test_finished_and_finished_again(recipe: Path) -> None:
    for _ in range(2):
        result = python(*PRETRAIN, recipe, "run.name=done")
        assert result.returncode == 0, result.stderr
    assert "up to date" in result.stdout


def test_a_crash_is_1_and_shows_its_traceback(recipe: Path) -> None:
    run = recipe.parent / "runs/crash"
    (run / "metrics.jsonl").mkdir(parents=True)  # nothing foresees a folder of this name
    result = python("run_pretrain.py", recipe, "run.name=crash")
    assert result.returncode == 1 and "IsADirectoryError" in result.stderr, result.stderr
    result = python(*PRETRAIN, recipe, "run.name=crash")
    assert result.returncode == 1, result.stdout + result.stderr


@pytest.mark.long
def test_refusals_of_recipe_and_data(recipe: Path, tmp_path: Path) -> None:
    refused(python(*PRETRAIN, recipe, "optim.lrr=1"), 2, "did you mean 'lr'")
    spoiled = write_recipe(tmp_path, "mlstm")
    shard = next((tmp_path / "prepared-mlstm").glob("train-*.shard"))
    content = bytearray(shard.read_bytes())
    content[300] ^= 1
    shard.write_bytes(content)
    result = python(*PRETRAIN, spoiled)
    assert result.returncode == 3 and shard.name in result.stderr, result.stderr


def test_a_cross_before_training_is_2_and_starts_nothing(recipe: Path) -> None:
    missing = "eval.last_word={x: {path: /nowhere.jsonl, text_field: text}}"
    result = python(*PRETRAIN, recipe, "run.name=cross", missing)
    assert result.returncode == 2 and "✗ evaluation files" in result.stderr, result.stderr
    assert not (recipe.parent / "runs/cross/metrics.jsonl").exists()


def test_diverged_is_4(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path, "transformer", optim__lr=1e30, optim__max_skipped_steps=3, run__steps=30
    )
    assert python(*PRETRAIN, path).returncode == 4


def test_stopped_is_75(recipe: Path) -> None:
    stop = ("run.steps=100000", "run.stop_after_minutes=0.0001", "run.name=stopped")
    assert python(*PRETRAIN, recipe, *stop).returncode == 75


def test_interrupted_is_130(recipe: Path) -> None:
    run = recipe.parent / "runs/interrupted"
    process = subprocess.Popen(
        [sys.executable, *PRETRAIN, str(recipe), "run.steps=1000000", "run.name=interrupted"],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while not ((run / "metrics.jsonl").is_file() and losses(run)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all at once
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 130, output
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
