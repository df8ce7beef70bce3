"""The `grid` section of a study file: which arms are run over which recipe."""

from __future__ import annotations

from pydantic import Field

from data_prep.recipe.section import Section


class GridConfig(Section):
    """Arms x seeds over one recipe, run one after another."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the study")
    folder: str = Field(default="runs", description="folder that holds the study's folder")
    recipe: str = Field(description="path of the recipe that the arms change")
    arms: dict[str, list[str]] = Field(
        min_length=1, description="arm name -> list of key=value overrides (may be empty)"
    )
    seeds: list[int] = Field(
        default_factory=lambda: [0], min_length=1, description="values of run.seed"
    )
    shared: list[str] = Field(default_factory=list, description="overrides that every arm takes")
    stages: list[str] = Field(
        default_factory=lambda: ["prepare", "pretrain", "export", "evaluate", "report"],
        description="stages each arm goes through",
    )
