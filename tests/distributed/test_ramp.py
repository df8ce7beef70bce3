"""A batch that grows during the run: on any number of ranks, through a resume, at every stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.training import train_recipe
from tests.pipeline.tiny import losses, metrics, write_recipe
from tests.ranks import run_ranks

# Four steps of 4 x 16 tokens, then steps of 8 x 16.
RAMP = [[250, 4]]


def trained(
    folder: Path, name: str, ranks: int, *overrides: str, stop_at: int | None = None
) -> list[float]:
    recipe = str(write_recipe(folder, "transformer", run__steps=8, optim__decay="none"))
    changes = [f"run.name={name}", "model.config.resid_pdrop=0", "model.config.embd_pdrop=0"]
    run_ranks(ranks, train_recipe, recipe, [*changes, *overrides], stop_at)
    return losses(folder / "runs" / name)


@pytest.mark.parametrize(
    "stage", [*(pytest.param(s, marks=pytest.mark.long) for s in (0, 1, 3)), 2]
)
def test_it_is_one_run_on_any_number_of_ranks_and_after_a_stop(tmp_path: Path, stage: int) -> None:
    changes = (f"batch.ramp={RAMP}", f"engine.zero_stage={stage}")
    alone = trained(tmp_path, "one", 1, changes[0])
    small = trained(tmp_path, "small", 1, "batch.global_batch=4", "run.steps=4")
    assert alone[:4] == small
    instances = [
        line["instances"] for line in metrics(tmp_path / "runs/one") if "train/loss" in line
    ]
    assert instances == [4, 8, 12, 16, 24, 32, 40, 48]
    straight = trained(tmp_path, "two", 2, *changes)
    assert straight == pytest.approx(alone, abs=5e-5)
    trained(tmp_path, "cut", 2, *changes, stop_at=6)
    assert trained(tmp_path, "cut", 2, *changes, "run.resume=must") == straight
