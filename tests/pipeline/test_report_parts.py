"""What a report tolerates and refuses, and its parts: thinning, running mean, verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.errors import DataError
from pipeline.recipe import load_recipe
from pipeline.report.figures import running_mean, thin
from pipeline.report.headline import bits_verdict, sentiment_verdict
from pipeline.report.load import read_run
from pipeline.report.stage import write_report

from .test_report import OPTIONAL, Page, make_run, report


@pytest.mark.parametrize("missing", [*OPTIONAL, "all"])
def test_optional_files_may_be_missing(tmp_path: Path, missing: str) -> None:
    recipe = make_run(tmp_path, "demo", points=30)
    for name in OPTIONAL if missing == "all" else [missing]:
        path = tmp_path / name
        path.unlink()
    folder, page, _ = report(recipe)
    assert Page(page).open == []
    if missing == "all":
        assert "Bits per byte on held-out text" in page  # from the last evaluation in training
        assert "Sentiment" not in page


def test_optional_keys_may_be_missing(tmp_path: Path) -> None:
    recipe = make_run(tmp_path, "demo", points=30)
    for name in ("heldout", "sentiment"):
        (tmp_path / f"runs/demo/evals/{name}.json").write_text('{"accuracy": 0.5}')
    (tmp_path / "runs/demo/finetune/metrics.json").write_text('{"accuracy": 0.5}')
    assert "–" in report(recipe)[1]


def test_run_without_metrics_says_what_to_run(tmp_path: Path) -> None:
    recipe = make_run(tmp_path, "demo", points=30)
    (tmp_path / "runs/demo/metrics.jsonl").unlink()
    with pytest.raises(DataError, match="python -m pipeline pretrain"):
        write_report(load_recipe(recipe))


def test_damaged_metrics_line(tmp_path: Path) -> None:
    recipe = make_run(tmp_path, "demo", points=30)
    (tmp_path / "runs/demo/metrics.jsonl").write_text("{nonsense\n")
    with pytest.raises(DataError, match="not JSON"):
        write_report(load_recipe(recipe))


def test_lines_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    recipe = load_recipe(make_run(tmp_path, "demo", points=30))
    metrics = recipe.run_folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    again = [line for line in lines if json.loads(line)["step"] > 100]
    half = '{"step": 301, "train/lo'
    metrics.write_text("\n".join([*lines, *again]) + "\n" + half)
    config: dict[str, Any] = recipe.model_dump(mode="json")
    run = read_run(recipe.run_folder, config)
    assert len(run.training) == 30
    assert [line["step"] for line in run.training] == sorted(line["step"] for line in run.training)


def test_long_log(tmp_path: Path) -> None:
    _, page, _ = report(make_run(tmp_path, "demo", points=100_000))
    assert len(page) < 1_000_000


def test_thinning_keeps_spikes_and_the_limit() -> None:
    x, y = np.arange(10_000.0), np.zeros(10_000)
    y[4321] = 9
    thin_x, thin_y = thin(x, y, 100)
    assert len(thin_x) <= 100
    assert thin_x[thin_y.argmax()] == 4321
    assert thin(x[:50], y[:50], 100)[0] is not None


def test_running_mean() -> None:
    assert running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]


def test_verdicts() -> None:
    assert "not learned more" in bits_verdict(4.6, 4.5)
    assert bits_verdict(2.0, None).startswith("Bits per byte on held-out text: 2.00 (smaller")
    result = {"accuracy": 0.6, "interval": [0.55, 0.65], "majority_accuracy": 0.58}
    assert "within chance" in sentiment_verdict(result)
    assert "do tell" in sentiment_verdict(result | {"majority_accuracy": 0.5})
    assert "worse" in sentiment_verdict(result | {"majority_accuracy": 0.7})
    assert sentiment_verdict({"accuracy": 0.6}) == "Sentiment accuracy 60.0 %."
