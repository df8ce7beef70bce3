"""The `run` section: name, length, seed, and what to do with what is already there."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_prep.recipe.section import Section


class RunConfig(Section):
    """Everything of a run lies in `folder/name`."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run's folder"
    )
    folder: str = Field(default="runs", description="folder that holds all runs")
    steps: int = Field(ge=1, description="optimizer updates to apply")
    seed: int = Field(default=0, ge=0, description="seed of weights, dropout and data order")
    resume: str = Field(
        default="auto",
        description="auto: go on if there is a checkpoint; must: fail without one; never: start "
        "fresh, refused where checkpoints lie; or the path of a checkpoint folder",
    )
    log_every_steps: int = Field(default=10, ge=1, description="steps between two metrics lines")
    loggers: list[Literal["csv", "wandb"]] = Field(
        default=[],
        description="where metrics go besides metrics.jsonl and TensorBoard: csv (metrics.csv), "
        "wandb (Weights & Biases; pip install wandb; WANDB_PROJECT, WANDB_MODE and WANDB_API_KEY "
        "are its own variables)",
    )
    stop_after_minutes: float | None = Field(
        default=None, gt=0, description="stop and save after this long, exit code 75"
    )
    processes: int | None = Field(
        default=None,
        ge=1,
        description="processes that `python -m pipeline pretrain` starts here; null = one "
        "for each GPU, or one",
    )
    max_restarts: int = Field(
        default=3,
        ge=0,
        description="crashes without a new checkpoint in between after which `python -m pipeline "
        "pretrain` gives up; a step that crashes twice ends it at once",
    )
