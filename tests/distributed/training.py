"""Training a run on this rank to its end, or until a stop that a test asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def train(run: Any, stop: Callable[[], bool] | None = None) -> None:
    """Train `run`; when `stop` says so, on whichever rank, it is saved and left."""
    from data_prep.errors import StoppedAndSaved
    from pipeline.train import loop
    from pipeline.train.stop import STOP

    if stop is not None:
        run.stop.pending = lambda: STOP if stop() else 0
    try:
        loop.train(run)
    except StoppedAndSaved:
        pass
    run.close()


def train_recipes(rank: int, path: str, runs: list[tuple[list[str], int | None]]) -> None:
    """Several runs of a recipe one after another, each as `train_recipe` has it: starting ranks
    takes longer than they train."""
    for overrides, stop_at in runs:
        train_recipe(rank, path, overrides, stop_at)


def train_recipe(rank: int, path: str, overrides: list[str], stop_at: int | None = None) -> None:
    """What `run_ranks` runs to train a recipe, asked to stop when `stop_at` steps are applied."""
    from pipeline.recipe import load_recipe
    from pipeline.train.engine import init_distributed
    from pipeline.train.start import start_run

    init_distributed(2)
    run = start_run(load_recipe(path, overrides))
    train(run, None if stop_at is None else lambda: run.clock.applied >= stop_at - 1)
