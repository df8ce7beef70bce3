"""Advice on batch and rate from a run's own noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.errors import DataError
from pipeline.recipe import load_recipe
from pipeline.report.advise import advise
from pipeline.report.stage import write_report

from .test_report import make_run


def noisy_run(
    folder: Path, noise: Callable[[int], float | None], *overrides: str
) -> tuple[Path, int, Path]:
    """A run whose n-th line of training measured `noise(n)` batches of noise; its folder, the
    tokens of its batch, and its recipe."""
    path = make_run(folder, "demo", points=30)
    recipe = load_recipe(path, overrides)
    (recipe.run_folder / "config.yaml").write_text(recipe.to_yaml())
    metrics = recipe.run_folder / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for number, line in enumerate(line for line in lines if "train/loss" in line):
        if (found := noise(number)) is not None:
            line["noise/scale_tokens"] = found * recipe.batch.tokens
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return recipe.run_folder, recipe.batch.tokens, path


def test_a_batch_near_the_noise_scale_is_kept(tmp_path: Path) -> None:
    folder, tokens, _ = noisy_run(tmp_path, lambda n: 1.5 if n % 3 == 0 else None)
    found = advise(folder)
    assert f"this batch       {tokens:,} tokens: 2.50 times the updates and 1.67 times" in found
    assert "keep this batch" in found


def test_a_batch_far_below_it_is_raised_with_its_rate(tmp_path: Path) -> None:
    folder, tokens, _ = noisy_run(tmp_path, lambda n: 1.0 if n < 10 else 16.0)
    found = advise(folder)
    assert f"noise scale      {tokens:,} tokens in the first third" in found
    assert "a larger batch: batch.global_batch=128" in found  # 16 times 8
    rate = max(
        json.loads(line).get("train/learning_rate", 0)
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    )
    # (1 + 16) / (1 + 1), and its root
    assert f"between {rate * 8.5**0.5:.3g} and {rate * 8.5:.3g}" in found
    assert f"early in the run {tokens:,} tokens would do: warm up for longer" in found


def test_a_batch_far_above_it_is_lowered(tmp_path: Path) -> None:
    folder, _, _ = noisy_run(tmp_path, lambda n: 0.05, "batch.global_batch=64")
    assert "a smaller batch: batch.global_batch=4 (128 tokens)" in advise(folder)  # a micro-batch


def test_without_noise_it_says_how_to_measure_it(tmp_path: Path) -> None:
    folder, _, _ = noisy_run(tmp_path, lambda n: None)
    with pytest.raises(DataError, match="optim.noise_every_steps=10"):
        advise(folder)
    with pytest.raises(DataError, match="is no run folder"):
        advise(tmp_path)


def test_the_report_shows_the_curve(tmp_path: Path) -> None:
    _, _, path = noisy_run(tmp_path, lambda n: 2.0 + n)
    write_report(load_recipe(path))
    assert "Gradient noise scale" in (tmp_path / "runs/demo/report.html").read_text()
