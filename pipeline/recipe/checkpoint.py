"""The `checkpoint` section: how often, and how many are kept."""

from __future__ import annotations

from pydantic import Field

from data_prep.recipe.section import Section


class CheckpointConfig(Section):
    """The end of a run is always saved."""

    every_steps: int = Field(
        default=0, ge=0, description="applied steps between saves; 0 = only the end"
    )
    keep_last: int = Field(default=2, ge=1, description="newest checkpoints kept; older ones go")
    keep_every_steps: int = Field(
        default=0, ge=0, description="checkpoints at multiples of this stay for ever; 0 = none do"
    )
    background: bool = Field(
        default=True,
        description="write weights and optimizer while training goes on, from a copy in memory",
    )
