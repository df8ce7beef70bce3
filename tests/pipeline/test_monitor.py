"""metrics.jsonl: one line a position, cut where a resumed run goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.clock import Clock, StepResult
from pipeline.run_folder import RunFolder
from pipeline.train.monitor import Monitor


class Board:
    """In place of TensorBoard's writer, whose import takes seconds."""

    made: list[Board] = []

    def __init__(self, folder: Path, purge_step: int) -> None:
        self.purge_step, self.scalars, self.closed = purge_step, [], False
        self.made.append(self)

    def add_scalar(self, key: str, value: float, step: int) -> None:
        self.scalars.append((key, value, step))

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def board(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    Board.made = []
    yield Board.made


def clock(step: int) -> Clock:
    return Clock(iteration=step, instances=8 * step, applied=step)


def write(folder: Path, steps: range, start: int = 0) -> None:
    monitor = Monitor(RunFolder(folder), clock(start), 10)
    for step in steps:
        monitor.log(clock(step), {"train/loss": float(step)}, result="applied")
    monitor.close()


def steps(folder: Path) -> list[int]:
    return [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_a_line_says_where_it_was_written(tmp_path: Path, board: list[Any]) -> None:
    write(tmp_path, range(3, 4))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 3, "iteration": 3, "instances": 24, "result": "applied", "train/loss": 3.0,
    }  # fmt: skip
    assert board[0].scalars == [("train/loss", 3.0, 3)] and board[0].closed


def test_none_is_left_out_and_zero_is_not(tmp_path: Path, board: list[Any]) -> None:
    monitor = Monitor(RunFolder(tmp_path), clock(0), 10)
    monitor.log(clock(1), {"x/a": None, "x/b": 0.0})
    monitor.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert "x/a" not in line and line["x/b"] == 0.0
    assert board[0].scalars == [("x/b", 0.0, 1)]


def test_a_line_is_on_disk_at_once(tmp_path: Path) -> None:
    monitor = Monitor(RunFolder(tmp_path), clock(0), 10)
    monitor.log(clock(1), {"a": 1.0})
    assert steps(tmp_path) == [1]
    monitor.close()


def test_lines_past_the_checkpoint_are_cut_on_resume(tmp_path: Path, board: list[Any]) -> None:
    write(tmp_path, range(1, 8))
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    write(tmp_path, range(5, 7), start=4)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == before[:6]
    assert board[1].purge_step == 4


def test_skipped_steps_are_cut_by_their_place_in_the_data(tmp_path: Path) -> None:
    monitor = Monitor(RunFolder(tmp_path), Clock(), 10)
    at = Clock()
    for result in (StepResult.APPLIED, StepResult.OVERFLOW, StepResult.OVERFLOW):
        at.advance(result, 8)
        monitor.log(at, {"a": 1.0})
    monitor.close()
    Monitor(RunFolder(tmp_path), Clock(2, 16, 1), 10).close()
    assert [line["instances"] for line in RunFolder(tmp_path).read_metrics()] == [8, 16]


def test_a_fresh_run_begins_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path, range(1, 5))
    write(tmp_path, range(1, 2))
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize("half", ['{"step": 3, "inst', '{"step": 3, "instances": 24}', "{"])
def test_a_half_written_last_line_is_dropped(tmp_path: Path, half: str) -> None:
    write(tmp_path, range(1, 3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(half)
    assert [line["step"] for line in RunFolder(tmp_path).read_metrics()] == [1, 2]
    write(tmp_path, range(3, 4), start=3)
    assert steps(tmp_path) == [1, 2, 3]


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.train.monitor.rank", lambda: 1)
    write(tmp_path, range(1, 3))
    assert list(tmp_path.iterdir()) == []


def test_the_console_line_shows_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = Monitor(RunFolder(tmp_path), clock(0), 200)
    metrics = {
        "train/loss": 1.5, "train/learning_rate": 1e-3, "perf/tokens_per_sec": 12_345.0,
        "train/grad_norm": None, "train/loss_scale": None, "train/skipped_steps": 0,
    }  # fmt: skip
    monitor.progress(clock(50), metrics, eta_s=3725)
    metrics |= {"train/grad_norm": 0.5, "train/loss_scale": 1024.0, "train/skipped_steps": 2}
    metrics |= {"perf/mfu": 0.25, "train/bpc": 1.23, "perf/data_wait_share": 0.004}
    monitor.progress(clock(50), metrics, eta_s=65, plugins=["ultra-sparse 0.1"])
    monitor.close()
    first, second = (line.partition(" ")[2] for line in capsys.readouterr().out.splitlines())
    assert first == "step 50/200 (25.0%) | loss 1.5000 | lr 1.00e-03 | 12.3k tok/s | eta 1h02m"
    assert second == (
        "step 50/200 (25.0%) | loss 1.5000 | bpc 1.230 | lr 1.00e-03 | gnorm 0.50 | scale 1024 | "
        "skipped 2 | ultra-sparse 0.1 | 12.3k tok/s | mfu 25.0% | data 0.4% | eta 1m05s"
    )


def test_the_clock_counts_each_result_at_its_own_speed() -> None:
    at = Clock()
    for result in StepResult:
        at.advance(result, 8)
    assert at.to_dict() == {"iteration": 4, "instances": 32, "applied": 1}
    assert Clock(**at.to_dict()) == at
