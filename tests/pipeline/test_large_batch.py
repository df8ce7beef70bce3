"""The batch ladder: its arms are those of ordinary studies, and it stops and goes on as it says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ladder import rates
from benchmarks.ladder.arms import Scale, Study, curve, train
from benchmarks.ladder.page import document
from pipeline.recipe import Recipe, load_grid
from pipeline.report.markdown import render
from pipeline.stages.study import expand


def scale(folder: Path, **changes: Any) -> Scale:
    sizes: dict[str, Any] = {"factors": (1, 8), "rates": (1e-3, 4e-3), "sgd_rates": (0.8,)}
    return Scale(folder, 2**17, seeds=(1,), **sizes | changes)


def test_rules_are_those_of_the_recipe() -> None:
    assert rates.rule_rates(1e-3, 64) == {
        "none": pytest.approx(1e-3), "sqrt": pytest.approx(8e-3), "linear": pytest.approx(64e-3)
    }  # fmt: skip


@pytest.mark.parametrize("model", ["mlstm", "transformer"])
def test_every_arm_reads_the_same_bytes(tmp_path: Path, model: str) -> None:
    study = Study("ladder", model, scale(tmp_path, factors=(1, 8, 64)))
    read = {
        recipe.batch.tokens * recipe.run.steps
        for factor in (1, 8, 64)
        for recipe in [study.recipe(study.add(f"x{factor}", factor))]
    }
    assert read == {2**17}


def test_an_arm_is_that_of_the_written_study(tmp_path: Path) -> None:
    """So that `python -m pipeline run` finds it done."""
    study = Study("ladder", "mlstm", scale(tmp_path), shared=["optim.warmup_tokens=8192"])
    arms = rates.add_rates(study, 8, [1e-3, 2e-3])
    expanded = expand(load_grid(study.write(arms, ["prepare", "pretrain"])))
    assert [recipe for _, recipe in expanded] == [study.recipe(arm) for arm in arms]


def test_an_arm_that_stops_early_keeps_the_schedule_of_the_whole(tmp_path: Path) -> None:
    study = Study("ladder", "mlstm", scale(tmp_path))
    whole = study.recipe(study.add("x1", 1))
    part = study.recipe("x1", share=0.25)
    assert part.run.steps == whole.run.steps / 4
    assert part.optim.decay_length(part.batch, part.run.steps) == whole.run.steps


def test_halving_lets_the_best_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss falls with the rate at first; the highest diverges, the second best overtakes."""
    study = Study("ladder", "mlstm", scale(tmp_path, rungs=((0.25, 2), (0.5, 1))))
    trained: list[tuple[float, int]] = []

    def loss(recipe: Recipe) -> float:
        trained.append((recipe.optim.lr, recipe.run.steps))
        early = recipe.run.steps == study.scale.steps(1, 0.25)
        losses = {1e-3: 5.0, 2e-3: 4.0 if early else 3.0, 4e-3: 3.5 if early else 3.4}
        return losses.get(recipe.optim.lr, math.inf)

    monkeypatch.setattr(rates, "train", loss)
    best, first = rates.halve(study, 1, [1e-3, 2e-3, 4e-3])
    assert study.recipe(best).optim.lr == 2e-3
    assert list(first.values()) == [5.0, 4.0, 3.5, math.inf]
    assert trained == [(1e-3, 64), (2e-3, 64), (4e-3, 64), (8e-3, 64),
                       (4e-3, 128), (2e-3, 128)]  # fmt: skip
    assert rates.largest_stable({study.recipe(a).optim.lr: b for a, b in first.items()}) == 4e-3


def test_the_page_shows_what_diverged() -> None:
    end = {"rate": 1e-3, "bits": math.inf, "curve": [(1, 8.0), (2, math.inf)], "test_bits": None,
           "sentiment": None, "sentiment_interval": None, "majority": None}  # fmt: skip
    rung = {"bytes_per_update": 512, "updates": 2, "first_rung": [(1e-3, 4.0), (2e-3, math.inf)],
            "largest_stable_rate": 1e-3, "chosen": end, "best": end,
            "rules": {"none": end}}  # fmt: skip
    found = {"ladder": {"mlstm": {"batches": {1: rung}}}, "precision": {}}
    text = render(document(found), "pictures")
    assert (
        "| x1 | 512 | 2 | 0.001 | diverged at 0.001 | diverged at 0.001 | diverged at 0.001 |"
        in text
    )
    assert "(pictures/large_batch_rates_mlstm.png)" in text


@pytest.mark.long
def test_an_arm_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    from pipeline.stages.runner import run_stages

    ends = []
    for name, shares in (("straight", [1.0]), ("stopped", [0.5, 1.0])):
        study = Study(name, "mlstm", scale(tmp_path))
        [arm] = rates.add_rates(study, 8, [4e-3])
        run_stages(study.recipe(arm), ["prepare"])
        losses = [train(study.recipe(arm, share=share)) for share in shares]
        points = curve(study.recipe(arm))
        assert train(study.recipe(arm)) == losses[-1]
        assert curve(study.recipe(arm)) == points  # nothing was trained again
        ends.append(losses[-1])
    assert ends[0] == ends[1]
