"""Preparation on a cluster, through the executors of datatrove.

datatrove is chosen over Ray itself because one small step of it runs under SLURM, under Ray and
on one host, and because its executors write the job scripts. Every process it starts is an
ordinary run of `prepare` on the shared folder: the claims on tasks balance the load, so it does
not matter how many processes start, when, or whether some of them die.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import RecipeError
from .prepare import prepare
from .recipe.data import DataConfig
from .recipe.loader import read_tree, validate


class Cluster(NamedTuple):
    """How many processes run where; `time` and `partition` are SLURM's."""

    engine: str  # slurm, ray or local
    parts: int
    cpus: int = 1
    time: str = "24:00:00"
    partition: str | None = None


def submit(recipe: Path, overrides: Sequence[str], workers: int | None, cluster: Cluster) -> None:
    """Start the parts; local and Ray parts are waited for, a SLURM job is left to run.

    RecipeError when the recipe is wrong or datatrove is not installed.
    """
    data = validate(DataConfig, read_tree(recipe, overrides).get("data"), "data")
    step = _step(recipe, overrides, workers or cluster.cpus)
    logs = f"{data.folder}.logs"
    print(f"{data.folder}: {cluster.parts} parts under {cluster.engine}, logs in {logs}")
    _executor(step, cluster, logs).run()


def _step(recipe: Path, overrides: Sequence[str], workers: int) -> Any:
    try:
        from datatrove.pipeline.base import PipelineStep
    except ImportError:
        hint = "pip install datatrove, or start `prepare` on every host yourself"
        raise RecipeError(f"submit runs under datatrove, which is not installed: {hint}") from None

    class Prepare(PipelineStep):
        name = "prepare"
        type = "tokens and shards"

        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
            prepare(recipe, overrides, workers=workers)
            yield from data or ()

    return Prepare()


def _executor(step: Any, cluster: Cluster, logs: str) -> Any:
    # Whether there is work left is for `prepare` to say, not for markers of an earlier recipe.
    shared = {"pipeline": [step], "tasks": cluster.parts, "logging_dir": logs,
              "skip_completed": False}  # fmt: skip
    if cluster.engine == "slurm":
        from datatrove.executor import SlurmPipelineExecutor

        if cluster.partition is None:
            raise RecipeError("submit --engine slurm needs --partition, the queue to run in")
        _check_plain("--partition", cluster.partition)
        _check_plain("--time", cluster.time)
        _check_plain("data.folder", os.path.abspath(logs))
        return SlurmPipelineExecutor(
            **shared,
            time=cluster.time,
            partition=cluster.partition,
            cpus_per_task=cluster.cpus,
            job_name="prepare",
        )
    if cluster.engine == "ray":
        from datatrove.executor import RayPipelineExecutor

        return RayPipelineExecutor(**shared, cpus_per_task=cluster.cpus)
    from datatrove.executor import LocalPipelineExecutor

    return LocalPipelineExecutor(**shared, workers=cluster.parts)


def _check_plain(key: str, value: str) -> None:
    """datatrove writes a job script in which nothing is quoted: what a shell could read as more
    than a word is refused."""
    if not re.fullmatch(r"[\w./,:@%+=-]+", value):
        raise RecipeError(
            f"{key}: {value!r:.80} would be read by the shell of the job script: use letters, "
            "digits and . / _ - , : @ % + = only"
        )
