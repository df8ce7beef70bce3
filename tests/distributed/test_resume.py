"""Interrupted and resumed equals uninterrupted, to the last bit, on the same number of ranks."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.training import train
from tests.pipeline.tiny import losses, metrics, write_recipe
from tests.ranks import run_ranks


def rank_train(rank: int, recipe: str, overrides: list[str], stop_at: int | None) -> Any:
    """Train; `stop_at` asks for a stop, on one rank only, when that step has been applied."""
    from pipeline.recipe import load_recipe
    from pipeline.train.engine import init_distributed
    from pipeline.train.start import start_run

    init_distributed(2)
    run = start_run(load_recipe(recipe, overrides))
    asks = stop_at is not None and rank == run.engine.world_size - 1
    train(run, (lambda: run.clock.applied >= stop_at - 1) if asks else None)
    return run.clock.to_dict(), run.lanes.gather()


def straight_and_interrupted(
    tmp_path: Path, kind: str, stage: int, world: int, **changes: Any
) -> Any:
    recipe = str(write_recipe(tmp_path, kind, engine__zero_stage=stage, **changes))
    straight = run_ranks(world, rank_train, recipe, ["run.name=straight"], None)
    run_ranks(world, rank_train, recipe, ["run.name=cut"], 3)
    assert len(losses(tmp_path / "runs/cut")) == 3
    resumed = run_ranks(world, rank_train, recipe, ["run.name=cut", "run.resume=must"], None)
    return straight, resumed


# These cover every stage and both models; the rest of the matrix is `long`.
SOME = [("mlstm", 3, 2), ("transformer", 1, 2), ("transformer", 2, 2), ("mlstm", 0, 1)]
ALL = [
    pytest.param(*each, marks=[] if each in SOME else pytest.mark.long)
    for each in itertools.product(("mlstm", "transformer"), range(4), (1, 2))
]


@pytest.mark.parametrize(("kind", "stage", "world"), ALL)
def test_resumed_run_is_the_uninterrupted_run(
    tmp_path: Path, kind: str, stage: int, world: int
) -> None:
    straight, resumed = straight_and_interrupted(tmp_path, kind, stage, world)
    assert losses(tmp_path / "runs/cut") == losses(tmp_path / "runs/straight")
    assert len(losses(tmp_path / "runs/cut")) == 6
    evals = [
        [m["eval/loss"] for m in metrics(tmp_path / f"runs/{n}") if "eval/loss" in m]
        for n in ("cut", "straight")
    ]
    assert evals[0] == evals[1] and len(evals[0]) == 2
    for (clock, lanes), (clock2, lanes2) in zip(straight, resumed, strict=True):
        assert clock == clock2
        assert lanes.keys() == lanes2.keys()
        assert all((lanes[k] == lanes2[k]).all() for k in lanes)
    instances = [m["instances"] for m in metrics(tmp_path / "runs/cut") if "train/loss" in m]
    assert instances == [8 * (i + 1) for i in range(6)]


@pytest.mark.parametrize("kind", ["mlstm", pytest.param("transformer", marks=pytest.mark.long)])
def test_windows_on_the_skip_list_are_passed_over_and_the_list_survives(
    tmp_path: Path, kind: str
) -> None:
    # Instances 16 to 31 are the third and fourth global batch of eight.
    recipe = str(write_recipe(tmp_path, kind, batch__skip_instances=[[20, 32]]))
    clock, _ = run_ranks(1, rank_train, recipe, ["run.name=straight"], None)[0]
    assert clock == {"iteration": 8, "instances": 64, "applied": 6}
    run_ranks(1, rank_train, recipe, ["run.name=cut"], 2)
    # The list is in the checkpoint: the recipe need not name it again.
    forget = ["run.name=cut", "run.resume=must", "batch.skip_instances=[]"]
    resumed, _ = run_ranks(1, rank_train, recipe, forget, None)[0]
    assert resumed == clock
    assert losses(tmp_path / "runs/cut") == losses(tmp_path / "runs/straight")
    seen = [m["instances"] for m in metrics(tmp_path / "runs/cut") if "train/loss" in m]
    assert seen == [8, 16, 40, 48, 56, 64]
    last = metrics(tmp_path / "runs/cut")[-2]
    assert last["train/skipped_steps"] == 2 and last["train/tokens"] == 6 * 8 * 16
