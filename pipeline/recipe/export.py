"""The `export` section: where the trained model goes."""

from __future__ import annotations

from pydantic import Field

from data_prep.recipe.section import Section


class ExportConfig(Section):
    """A folder that `AutoModelForCausalLM` and `AutoTokenizer` load."""

    folder: str | None = Field(default=None, description="target; null = RUN_FOLDER/export")
    checkpoint: str | None = Field(
        default=None, description="checkpoint folder name such as global_step100; null = the latest"
    )
    tolerance: float = Field(
        default=1e-4,
        gt=0,
        description="largest difference of log-probabilities to the trained model",
    )
