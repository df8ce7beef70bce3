"""`Section`: the base of every recipe section, and the names a recipe may hold.

Sections are strict: unknown keys, strings for numbers and floats for integers are refused,
because a silently converted or ignored setting is a wrong experiment.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

SECTION_NAMES = (
    "run", "data", "tokenizer", "model", "head", "sparsity", "batch", "optim", "precision",
    "engine", "watch", "checkpoint", "eval", "export", "finetune", "report", "grid",
)  # fmt: skip


class Section(BaseModel):
    """A frozen, strict recipe section: an integer is accepted where a float is expected, infinity
    and NaN are nowhere."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
