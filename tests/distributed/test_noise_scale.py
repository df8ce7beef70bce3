"""The gradient noise scale does not depend on ranks, accumulation or ZeRO stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.training import train_recipe
from tests.pipeline.tiny import metrics, write_recipe
from tests.ranks import run_ranks


def measured(folder: Path, name: str, ranks: int, *overrides: str) -> list[float]:
    """Both parts at the last step."""
    recipe = str(write_recipe(folder, "mlstm", optim__noise_every_steps=1))
    run_ranks(ranks, train_recipe, recipe, [f"run.name={name}", *overrides])
    last = [line for line in metrics(folder / "runs" / name) if "train/loss" in line][-1]
    return [last["noise/trace"], last["noise/gradient_squared"]]


@pytest.mark.parametrize("stage", [*(pytest.param(s, marks=pytest.mark.long) for s in (0, 1)), 2])
def test_two_ranks_find_the_noise_of_one(tmp_path: Path, stage: int) -> None:
    alone = measured(tmp_path, "one", 1)
    assert measured(tmp_path, "two", 2, f"engine.zero_stage={stage}") == pytest.approx(
        alone, rel=1e-3
    )


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_half_precision_finds_nearly_the_same(tmp_path: Path, stage: int) -> None:
    alone = measured(tmp_path, "one", 1)
    half = measured(tmp_path, "half", 1, f"engine.zero_stage={stage}", "precision.dtype=bf16")
    assert half == pytest.approx(alone, rel=0.1)
