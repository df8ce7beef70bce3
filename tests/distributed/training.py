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


def plant(run: Any, at: int, factor: float, where: str = "loss") -> None:
    """The loss or gradient of the batch at instance `at` is multiplied, on the last rank only."""
    forward, backward = run.engine.forward, run.engine.backward

    def bad() -> bool:
        at_bad = run.clock.instances <= at < run.clock.instances + run.global_batch
        return at_bad and run.module.training and run.engine.rank == run.engine.world_size - 1

    def planted_forward(*inputs: Any) -> Any:
        loss_sum, count, state = forward(*inputs)
        return (loss_sum * factor if bad() and where == "loss" else loss_sum), count, state

    def planted_backward(loss: Any, last: bool) -> None:
        backward(loss * factor if bad() and where == "gradient" else loss, last=last)

    run.engine.forward, run.engine.backward = planted_forward, planted_backward


def plant_in_every_run(at: int, factor: float) -> None:
    """The same in all that this process starts from now on."""
    from pipeline.train import start

    start_run = start.start_run

    def start_planted(*arguments: Any) -> Any:
        run = start_run(*arguments)
        plant(run, at, factor)
        return run

    start.start_run = start_planted  # type: ignore[assignment]
