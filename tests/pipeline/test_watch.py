"""Watching runs: what is read while they write, what is read again, and what a curve keeps."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.clock import Clock
from pipeline.run_folder import RunFolder
from pipeline.train.monitor import Monitor
from pipeline.watch import series
from pipeline.watch.folders import Run, find_runs, open_file
from pipeline.watch.follow import Follower, number, parse
from pipeline.watch.overview import overview
from pipeline.watch.series import Series
from pipeline.watch.watched import Watched
from tests.pipeline.test_monitor import board  # noqa: F401  (no TensorBoard in Monitor)

NOW = 1_000_000.0


def write_run(folder: Path, steps: Sequence[int], planned: int = 100) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"steps": planned}}))
    if steps:
        (folder / "metrics.jsonl").write_text("".join(line(step) for step in steps))
    return Run("id", folder.name, folder)


def line(step: int, **extra: Any) -> str:
    return json.dumps({
        "step": step, "iteration": step, "instances": 8 * step, "train/loss": 10 / step,
        "train/tokens": 100 * step, "time/train_s": 2.0 * step, "train/grad_norm": 1.0,
        "perf/tokens_per_sec": 50.0, **extra,
    }) + "\n"  # fmt: skip


def losses(follower: Follower) -> list[float]:
    news = follower.series["loss"].news(0, 0)
    return [] if news is None else [row[4] for row in news["rows"]]


# Curves ----------------------------------------------------------------------------------------


def reader(news: dict[str, Any] | None, held: dict[str, Any]) -> dict[str, Any]:
    """What the page does with an answer."""
    if news is None:
        return held
    return news | {"rows": held["rows"][: news["start"]] + news["rows"]}


def test_a_reader_who_asks_now_and_then_has_what_one_who_asks_once_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(series, "_MOST_BUCKETS", 16)
    draw = random.Random(3)
    curve, held = Series(), {"generation": 0, "known": 0, "rows": []}
    for step in range(1000):
        curve.add((step, None, None), draw.gauss(0, 1))
        if draw.random() < 0.2:
            held = reader(curve.news(held["generation"], held["known"]), held)
    held = reader(curve.news(held["generation"], held["known"]), held)
    at_once = curve.news(0, 0)
    assert at_once is not None
    assert held["rows"] == at_once["rows"] and 8 <= len(held["rows"]) <= 16


def test_buckets_hold_mean_and_extremes_of_all_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "_MOST_BUCKETS", 8)
    draw = random.Random(5)
    values = [draw.gauss(0, 1) for _ in range(333)]
    curve = Series()
    for step, value in enumerate(values):
        curve.add((step,), value)
    news = curve.news(0, 0)
    assert news is not None
    begin = 0
    for last, low, mean, high in news["rows"]:
        part = values[begin : int(last) + 1]
        assert (low, high) == pytest.approx((min(part), max(part)), rel=1e-5)
        assert mean == pytest.approx(sum(part) / len(part), rel=1e-4, abs=1e-5)
        begin = int(last) + 1
    assert begin == len(values)


def test_nothing_new_is_not_sent() -> None:
    curve = Series()
    assert curve.news(curve.generation, 0) is None
    curve.add((1,), 1.0)
    news = curve.news(curve.generation, 0)
    assert news is not None and curve.news(curve.generation, news["known"]) is None
    # A reader of another server, or of one that was started again, begins anew.
    assert curve.news(17, 1) == news and curve.news(curve.generation, 99) == news


# Reading on ------------------------------------------------------------------------------------


def test_only_what_was_added_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "a", range(1, 50))
    follower = Follower(run)
    assert follower.read()
    parsed: list[bytes] = []
    from pipeline.watch import follow

    whole = follow.parse
    monkeypatch.setattr(follow, "parse", lambda text: parsed.append(text) or whole(text))
    follower.read()
    assert parsed == []
    with (run.root / "metrics.jsonl").open("a") as file:
        file.write(line(50) + line(51))
    follower.read()
    assert parsed == [line(50).encode(), line(51).encode()]
    assert len(losses(follower)) == 51


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [1, 2])
    follower, whole = Follower(run), line(3)
    for part in (whole[:10], whole[10:-1]):
        with (run.root / "metrics.jsonl").open("a") as file:
            file.write(part)
        follower.read()
        assert len(losses(follower)) == 2
    with (run.root / "metrics.jsonl").open("a") as file:
        file.write(whole[-1])
    follower.read()
    assert losses(follower) == [10.0, 5.0, 3.33333]


def test_a_resumed_run_loses_the_lines_that_it_writes_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", range(1, 21))
    follower = Follower(run)
    follower.read()
    monitor = Monitor(RunFolder(run.root), Clock(10, 80, 10), 100)  # as a resume opens it
    follower.read()
    assert len(losses(follower)) == 10
    monitor.log(Clock(11, 88, 11), {"train/loss": 77.0})
    monitor.close()
    follower.read()
    assert losses(follower)[9:] == [1.0, 77.0]


def test_a_resumed_run_that_has_grown_past_its_old_length_is_read_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", range(1, 6))
    follower = Follower(run)
    follower.read()
    again = [line(step, **{"train/loss": 9.0}) for step in range(1, 30)]
    (run.root / "metrics.jsonl").write_text("".join(again))
    follower.read()
    assert losses(follower) == [9.0] * 29


def test_a_long_log_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.watch.follow._BYTES_AT_ONCE", 1000)
    follower = Follower(write_run(tmp_path / "a", range(1, 101)))
    reads = 1
    while not follower.read():
        reads += 1
    assert reads > 10 and len(losses(follower)) == 100


def test_lines_of_no_use_are_passed_over(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [])
    bad = ["{nonsense\n", "[1]\n", "\xff\n", '{"train/loss": "high"}\n', '{"train/loss": NaN}\n',
           '{"train/loss": true}\n', "\n"]  # fmt: skip
    (run.root / "metrics.jsonl").write_text("".join([*bad, line(2)]), encoding="latin-1")
    follower = Follower(run)
    assert follower.read() and losses(follower) == [5.0]


def test_numbers_beyond_all_numbers_are_none() -> None:
    assert number(10**400) is None and number(-(10**400)) is None and number(3) == 3
    assert parse(b"[" * 100_000) == {}


def test_a_file_that_has_gone_leaves_no_curve(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [1, 2])
    follower = Follower(run)
    follower.read()
    (run.root / "metrics.jsonl").unlink()
    assert follower.read() and losses(follower) == []


# The list --------------------------------------------------------------------------------------


def dated(path: Path, when: float) -> None:
    os.utime(path, (when, when))


def test_where_a_run_stands(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [])
    assert overview(run, NOW)["state"] == "starting"
    write_run(run.root, range(1, 31))
    with (run.root / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 30, "eval/loss": 1.0, "eval/bits_per_byte": 2.5}) + '\n{"st')
    dated(run.root / "metrics.jsonl", NOW - 5)
    found = overview(run, NOW)
    assert found == {
        "id": "id", "name": "a", "state": "running", "reason": "", "step": 30, "steps": 100,
        "eta_s": 140.0, "loss": 10 / 30, "bits_per_byte": 2.5, "tokens_per_s": 50.0,
        "last_write": NOW - 5,
    }  # fmt: skip
    assert overview(run, NOW + 3600)["state"] == "silent"
    status = run.root / "status.json"
    status.write_text(json.dumps({"state": "stopped", "reason": "SIGTERM"}))
    dated(status, NOW)
    found = overview(run, NOW + 1)
    assert (found["state"], found["reason"], found["eta_s"]) == ("stopped", "SIGTERM", None)
    dated(run.root / "metrics.jsonl", NOW + 1)  # resumed: the status is of the run before
    assert overview(run, NOW + 2)["state"] == "running"


def test_slow_lines_are_not_silence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [1, 101, 201])  # 200 s apart
    dated(run.root / "metrics.jsonl", NOW)
    assert overview(run, NOW + 1900)["state"] == "running"
    assert overview(run, NOW + 2100)["state"] == "silent"


@pytest.mark.parametrize("recipe", ["", "run: 3", "run: {steps: many}", "[", "- run",
                                    "run: {steps: .inf}", "[" * 3000])  # fmt: skip
def test_a_recipe_without_steps_is_a_run_all_the_same(tmp_path: Path, recipe: str) -> None:
    run = write_run(tmp_path / "a", [1, 2])
    (run.root / "config.yaml").write_text(recipe)
    (run.root / "status.json").write_text("half a fi")
    found = overview(run, NOW)
    assert (found["steps"], found["eta_s"], found["step"]) == (None, None, 2)


# Folders ---------------------------------------------------------------------------------------


def test_runs_are_found_and_named(tmp_path: Path) -> None:
    for path in ("runs/a", "runs/study/arm-seed1", "runs/study/arm-seed2", "other/a"):
        write_run(tmp_path / path, [1])
    write_run(tmp_path / "runs/a/superseded/old", [1])  # within a run
    (tmp_path / "runs/empty").mkdir()
    found = find_runs([tmp_path / "runs"])
    assert [run.name for run in found] == ["a", "study/arm-seed1", "study/arm-seed2"]
    assert [run.name for run in find_runs([tmp_path / "runs/a", tmp_path / "runs"])][0] == "a"
    both = find_runs([tmp_path / "runs", tmp_path / "other"])
    assert [run.name for run in both if run.name.endswith("/a")] == [
        str(tmp_path / "other/a"), str(tmp_path / "runs/a"),
    ]  # fmt: skip
    assert len({run.id for run in both}) == 4
    assert find_runs([tmp_path / "gone"]) == []


def test_links_lead_nowhere(tmp_path: Path) -> None:
    write_run(tmp_path / "secret", [1])
    run = write_run(tmp_path / "runs/a", [])
    (tmp_path / "runs/link").symlink_to(tmp_path / "secret")
    (run.root / "metrics.jsonl").symlink_to(tmp_path / "secret/metrics.jsonl")
    (run.root / "status.json").symlink_to(tmp_path / "secret/metrics.jsonl")
    assert [found.name for found in find_runs([tmp_path / "runs"])] == ["a"]
    assert open_file(run, "metrics.jsonl") is None
    follower = Follower(run)
    assert follower.read() and losses(follower) == []
    assert overview(run, NOW)["state"] == "starting"


def test_pipes_and_folders_are_not_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [])
    os.mkfifo(run.root / "metrics.jsonl")  # opening it to read would wait for ever
    (run.root / "status.json").mkdir()
    assert open_file(run, "metrics.jsonl") is None and open_file(run, "status.json") is None


def test_new_runs_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.watch.watched._SEARCH_EVERY_S", 0.0)
    watched = Watched([tmp_path])
    assert watched.list_runs()["runs"] == []
    write_run(tmp_path / "a", [1])
    (found,) = watched.list_runs()["runs"]
    curves = watched.curves(found["id"], {})
    assert curves is not None and curves["complete"] and len(curves["curves"]["loss"]["rows"]) == 1
    assert watched.curves("../a", {}) is None
