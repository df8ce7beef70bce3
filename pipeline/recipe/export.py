"""The `export` section: where the trained model goes."""

from __future__ import annotations

from pydantic import Field

from data_prep.recipe.section import Section


class ExportConfig(Section):
    """A folder that `AutoModelForCausalLM` and `AutoTokenizer` load."""

    folder: str | None = Field(default=None, description="target; null = RUN_FOLDER/export")
    checkpoint: str | None = Field(
        default=None,
        description="checkpoint folder name such as global_step100; null = the latest",
    )
    max_shard_size: str = Field(
        default="5GB",
        pattern=r"^[1-9][0-9]*(KB|MB|GB)$",
        description="largest file of weights; a larger model is cut into several and an index",
    )
    tolerance: float = Field(
        default=1e-4,
        gt=0,
        description="largest difference of log-probabilities to the trained model",
    )
