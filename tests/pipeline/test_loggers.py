"""Loggers beside metrics.jsonl: CSV made from it, W&B through a module of the same shape."""

from __future__ import annotations

import csv
import importlib.machinery
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data_prep.errors import RecipeError
from pipeline.clock import Clock
from pipeline.recipe import load_recipe
from pipeline.run_folder import RunFolder
from pipeline.stages.graph import stage_called
from pipeline.train.loggers import check_loggers
from pipeline.train.monitor import Monitor
from tests.pipeline.test_monitor import board, clock  # noqa: F401  (no TensorBoard in Monitor)
from tests.pipeline.test_report import make_run

SECRET = "0123456789abcdef0123456789abcdef01234567"


def monitor(folder: Path, loggers: list[str], step: int = 0) -> Monitor:
    return Monitor(RunFolder(folder), clock(step), 100, loggers)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def as_lines(folder: Path) -> list[dict[str, str]]:
    """What metrics.jsonl holds, as a reader of CSV would see it."""
    lines = list(RunFolder(folder).read_metrics())
    columns = {key for line in lines for key in line}
    return [{key: str(line.get(key, "")) for key in columns} for line in lines]


def log(made: Monitor, step: int, **more: float) -> None:
    metrics = {"train/loss": 1 / step} | {key.replace("_", "/"): v for key, v in more.items()}
    made.log(clock(step), metrics, result="applied")


def test_csv_says_what_metrics_jsonl_says(tmp_path: Path) -> None:
    made = monitor(tmp_path, ["csv"])
    log(made, 1)
    assert rows(tmp_path) == as_lines(tmp_path)  # at once, not at the end
    log(made, 2, eval_loss=3.0)  # a column more
    log(made, 3)
    assert rows(tmp_path) == as_lines(tmp_path)
    made.close()
    assert rows(tmp_path)[1]["eval/loss"] == "3.0" and rows(tmp_path)[2]["eval/loss"] == ""


def test_csv_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path: Path) -> None:
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    for name, pieces in (("whole", [(0, 7)]), ("resumed", [(0, 6), (4, 7)])):
        for start, end in pieces:
            made = monitor(tmp_path / name, ["csv"], start)
            for step in range(start + 1, end):
                log(made, step)
            made.close()
    texts = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "resumed")]
    assert texts[0] == texts[1] and texts[0].count("step") == 1


def test_csv_asked_for_late_has_the_lines_from_before(tmp_path: Path) -> None:
    made = monitor(tmp_path, [])
    log(made, 1)
    made.close()
    assert not (tmp_path / "metrics.csv").exists()
    made = monitor(tmp_path, ["csv"], 1)
    log(made, 2)
    made.close()
    assert rows(tmp_path) == as_lines(tmp_path) and len(rows(tmp_path)) == 2


# Weights & Biases ------------------------------------------------------------------------------


class FakeRun:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.logged, self.finished = settings, [], False
        self.axes: list[tuple[str, str]] = []

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    module, made = ModuleType("wandb"), []
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)

    def init(**settings: Any) -> FakeRun:
        made.append(FakeRun(settings))
        return made[-1]

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    return made


def test_wandb_gets_every_line_and_goes_on_after_a_resume(
    tmp_path: Path, runs: list[FakeRun]
) -> None:
    (tmp_path / "config.yaml").write_text("run: {steps: 5}\n")
    for start in (0, 2):
        made = monitor(tmp_path, ["wandb"], start)
        log(made, start + 1)
        made.close()
    first, second = runs
    assert first.logged == [{"step": 1, "train/loss": 1.0}] and first.finished
    assert first.axes == [("*", "step")]
    assert first.settings["id"] == second.settings["id"] and len(first.settings["id"]) == 16
    assert first.settings["resume"] == "allow"
    assert first.settings["config"] == {"run": {"steps": 5}}


def test_the_key_reaches_no_file_and_no_console(
    tmp_path: Path, runs: list[FakeRun], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made = monitor(tmp_path, ["wandb", "csv"])
    log(made, 1)
    made.close()

    def refused(**_: Any) -> None:
        raise ValueError(f"bad key {SECRET}")

    monkeypatch.setattr(sys.modules["wandb"], "init", refused)
    with pytest.raises(RecipeError, match=r"W&B did not start \(bad key \*\*\*\): run `wandb lo"):
        monitor(tmp_path, ["wandb"])
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert not any(SECRET in text for text in [*files, str(runs[0].settings), *capsys.readouterr()])


def test_a_missing_wandb_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="not installed: pip install wandb"):
        check_loggers(["csv", "wandb"])
    check_loggers(["csv"])


def test_the_real_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    made = monitor(tmp_path, ["wandb"])
    log(made, 1)
    made.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


# The recipe ------------------------------------------------------------------------------------


def test_the_key_of_the_recipe(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a", points=10)
    recipes = [load_recipe(path, more) for more in ([], ["run.loggers=[csv, wandb]"])]
    assert recipes[0].run.loggers == [] and recipes[1].run.loggers == ["csv", "wandb"]
    hashes = {stage_called("pretrain").hash(recipe) for recipe in recipes}
    assert len(hashes) == 1  # another logger is no reason to train again
    with pytest.raises(RecipeError, match="run.loggers"):
        load_recipe(path, ["run.loggers=[excel]"])


def test_a_clock_ahead_is_needed_for_no_logger(tmp_path: Path) -> None:
    made = Monitor(RunFolder(tmp_path), Clock(), 1, ["csv"])
    made.close()
    assert (tmp_path / "metrics.csv").read_text() == "\n"
    assert json.dumps(rows(tmp_path)) == "[]"
