"""The `optim` section: optimizer and learning-rate schedule, in applied steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_prep.recipe.section import Section


class OptimConfig(Section):
    """AdamW with linear warm-up and a decay whose horizon may differ from the run's length."""

    name: Literal["adamw"] = Field(default="adamw", description="optimizer")
    lr: float = Field(gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="Adam's averaging rates")
    eps: float = Field(default=1e-8, gt=0, description="Adam's denominator floor")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled decay of matrices; vectors are never decayed"
    )
    warmup_steps: int = Field(default=0, ge=0, description="linear ramp from 0, applied steps")
    decay: Literal["linear", "cosine", "none"] = Field(default="linear", description="decay shape")
    decay_steps: int | None = Field(
        default=None, ge=1, description="applied steps until the decay ends; null = run.steps"
    )
    final_lr_share: float = Field(
        default=0.0, ge=0, le=1, description="share of the peak left when the decay ends"
    )
    gradient_clip_norm: float = Field(
        default=1.0, ge=0, description="global gradient norm to clip to; 0 = off"
    )
    max_skipped_steps: int = Field(
        default=50, ge=1, description="overflows in a row before the run stops as diverged (4)"
    )
