"""The `precision` section: the dtype of weights and activations in the forward pass."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_prep.recipe.section import Section


class PrecisionConfig(Section):
    """The optimizer always works on fp32 masters; the loss is always fp32."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 on a GPU that has it, else fp32"
    )
    initial_scale_power: int = Field(
        default=16, ge=0, le=32, description="fp16: the loss scale starts at 2 to this power"
    )
    scale_window: int = Field(
        default=1000, ge=1, description="fp16: clean steps before the loss scale doubles"
    )
    hysteresis: int = Field(
        default=2, ge=1, description="fp16: overflows tolerated before the loss scale halves"
    )
