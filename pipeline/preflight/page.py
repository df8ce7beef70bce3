"""The list of checks that a user sees, and the exit code that it ends with."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import cache

import torch

from data_prep.errors import DataError, PipelineError, RecipeError
from pipeline.models.build import parameter_count
from pipeline.plan.memory import meta_module
from pipeline.preflight import inputs, machine, room
from pipeline.preflight.dry import valid_module
from pipeline.preflight.micro_batch import one_micro_batch
from pipeline.preflight.network import meet
from pipeline.recipe import Recipe
from pipeline.train.module import TrainModule


def preflight(recipe: Recipe, *, dist: bool = False) -> None:
    """Run every check, print ticks and crosses. RecipeError or DataError when one fails.

    With `dist` every rank of a launcher calls this: they meet, then rank 0 makes the other checks.
    """
    if dist:
        _tell({"network": meet}, "preflight", silent=os.environ["RANK"] != "0")
        if os.environ["RANK"] != "0":
            return
    # As many as `python -m pipeline pretrain` would start, or as the launcher has started.
    devices = max(int(os.environ.get("WORLD_SIZE", "1")), torch.cuda.device_count(), 1)

    @cache
    def module() -> TrainModule:
        return valid_module(recipe, devices)

    _tell(
        {
            "versions": machine.versions,
            "compilers": lambda: machine.compilers(recipe),
            "devices": machine.devices,
            "extension locks": machine.locks,
            "recipe and DeepSpeed JSON": lambda: (
                f"{parameter_count(module()) / 1e6:.2f} M parameters on {devices} device(s)"
            ),
            "engine": lambda: machine.engine(recipe, devices),
            "prepared data": lambda: inputs.data(recipe),
            "evaluation files": lambda: inputs.evaluation_files(recipe),
            "run folder": lambda: room.writable(recipe),
            "checkpoints": lambda: room.beginning(recipe),
            "disk": lambda: room.disk(recipe, module()),
            "memory": lambda: room.memory(recipe, module(), devices),
            "a micro-batch": lambda: one_micro_batch(recipe, module()),
        },
        "preflight",
    )


def quick(recipe: Recipe) -> None:
    """The checks that cost nothing, before processes are started; silent unless one fails."""
    _tell(
        {
            "versions": machine.versions,
            "compilers": lambda: machine.compilers(recipe),
            "devices": machine.devices,
            "extension locks": machine.locks,
            "evaluation files": lambda: inputs.evaluation_files(recipe),
            "run folder": lambda: room.writable(recipe),
            "disk": lambda: room.disk(recipe, meta_module(recipe)),
        },
        "the check before training",
        silent=True,
    )


def _tell(checks: Mapping[str, Callable[[], str]], what: str, *, silent: bool = False) -> None:
    failures: dict[str, PipelineError] = {}
    for name, check in checks.items():
        try:
            found = check()
            if not silent:
                print(f"✓ {name}: {found}", flush=True)
        except PipelineError as error:
            # A model that cannot be built, or data that is missing, fails more than one check.
            if _speaks(str(error)) and str(error) not in failures:
                print(f"✗ {name}: {error}", file=sys.stderr, flush=True)
            failures[str(error)] = error
    if failures:
        refused = all(isinstance(failure, DataError) for failure in failures.values())
        kind = DataError if refused else RecipeError
        raise kind(f"{what} found {len(failures)} problem(s), see above")


def _speaks(message: str) -> bool:
    """One rank tells what all have heard; what one has met alone, it tells itself."""
    rank = os.environ.get("RANK", "0")
    return rank == "0" or message.startswith(f"rank {rank} ")
