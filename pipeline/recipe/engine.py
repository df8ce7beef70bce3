"""The `engine` section: how the model is spread over devices."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_prep.recipe.section import Section


class EngineConfig(Section):
    """DeepSpeed; its own settings live in a template of `ds_configs/`."""

    kind: Literal["deepspeed"] = "deepspeed"
    zero_stage: int = Field(default=0, ge=0, le=3, description="ZeRO stage: what is sharded")
    template: str | None = Field(
        default=None, description="DeepSpeed JSON; null = ds_configs/zero{zero_stage}.json"
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="compute activations again in backward instead of keeping them: a third more "
        "time for a fraction of their memory",
    )
    compile: bool = Field(
        default=False,
        description="Transformers, ZeRO 0 to 2: let torch.compile fuse the model's operations; a "
        "minute or two more at the start",
    )
    timeout_minutes: float = Field(
        default=30, gt=0, le=525_600, description="longest wait for another rank before giving up"
    )
