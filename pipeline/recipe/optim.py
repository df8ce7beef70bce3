"""The `optim` section: optimizer, the rate for a batch of any size, and its course over the run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from data_prep.recipe.section import Section
from pipeline.recipe.batch import BatchConfig


class OptimConfig(Section):
    """The optimizer; rule, cap, warm-up and horizon of the rate are settings of their own."""

    name: str = Field(
        default="adamw",
        description="of torch.optim (sgd, nadam, muon, ...) or, where they are installed, of "
        "pytorch_optimizer (lion, lamb, soap, ...), bitsandbytes (bnb_adamw8bit, ...) and torchao "
        "(ao_adamw8bit, ...)",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="more of its arguments, e.g. {momentum: 0.9}"
    )
    lr: float = Field(
        gt=0, description="peak learning rate; with optim.scaling, that of the reference batch"
    )
    betas: tuple[float, float] = Field(
        default=(0.9, 0.999), description="averaging rates, for an optimizer that has them"
    )
    eps: float = Field(default=1e-8, gt=0, description="denominator floor, where there is one")
    weight_decay: float = Field(
        default=0.0, ge=0,
        description="decay of matrices, decoupled under adamw; vectors are never decayed",
    )  # fmt: skip

    reference_tokens: int | None = Field(
        default=None, ge=1, description="tokens of the batch that optim.lr was found for"
    )
    scaling: Literal["none", "linear", "sqrt", "legw"] = Field(
        default="none",
        description="how the peak grows with the batch over the reference: linear and sqrt; legw: "
        "sqrt, and a warm-up in tokens grows in proportion",
    )
    lr_cap: float | None = Field(default=None, gt=0, description="the peak never exceeds it")

    warmup: Literal["zero", "gradual", "constant"] = Field(
        default="zero",
        description="from 0 in equal steps; gradual: from the reference rate (Goyal et al. 2017); "
        "constant: at the reference rate, then a jump",
    )
    warmup_steps: int = Field(default=0, ge=0, description="its length, applied steps; 0 = none")
    warmup_tokens: int | None = Field(default=None, ge=1, description="its length in tokens")

    decay: Literal["linear", "cosine", "wsd", "step", "none"] = Field(
        default="linear",
        description="shape of the decay; wsd: stable, linear at the end; step: by a factor at "
        "given points",
    )
    decay_steps: int | None = Field(
        default=None, ge=1, description="applied steps until the decay ends; null = run.steps"
    )
    decay_tokens: int | None = Field(default=None, ge=1, description="the same in tokens")
    decay_share: float = Field(
        default=0.2, gt=0, le=1, description="wsd: share of the horizon that decays, at its end"
    )
    decay_at: list[float] = Field(
        default=[1 / 3, 2 / 3, 8 / 9],
        description="step: shares of the horizon where the rate falls",
    )
    decay_factor: float = Field(default=0.1, gt=0, lt=1, description="step: by this factor each")
    final_lr_share: float = Field(
        default=0.0, ge=0, le=1, description="share of the peak left when the decay ends"
    )

    gradient_clip_norm: float = Field(
        default=1.0, ge=0, description="global gradient norm to clip to; 0 = off"
    )
    sam_rho: float = Field(
        default=0.0, ge=0,
        description="sharpness-aware minimisation: length of the climb before the gradient that "
        "counts, at twice the time a step; 0 = off; with engine.kind=ddp",
    )  # fmt: skip
    sam_adaptive: bool = Field(
        default=False, description="climb in proportion to each weight (ASAM)"
    )
    noise_every_steps: int = Field(
        default=0, ge=0,
        description="measure the gradient noise scale in every so many steps; 0 = off",
    )  # fmt: skip
    max_skipped_steps: int = Field(
        default=50, ge=1, description="overflows in a row before the run stops as diverged (4)"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> OptimConfig:
        if self.scaling != "none" and self.reference_tokens is None:
            raise ValueError(
                f"scaling={self.scaling} needs reference_tokens, the batch that lr={self.lr:g} was "
                "found for"
            )
        if self.warmup != "zero" and self.scaling == "none":
            raise ValueError(
                f"warmup={self.warmup} begins at the reference rate, and scaling is none: set "
                "scaling and reference_tokens, or warmup=zero"
            )
        if self.lr_cap is not None and self.lr_cap < self.lr:
            raise ValueError(
                f"lr_cap={self.lr_cap:g} is below the reference rate lr={self.lr:g}: raise the cap "
                "or lower lr"
            )
        for length in ("warmup", "decay"):
            if getattr(self, f"{length}_steps") and getattr(self, f"{length}_tokens"):
                raise ValueError(f"{length}_steps and {length}_tokens are both given: keep one")
        if self.decay_at != sorted(self.decay_at) or not all(0 < at < 1 for at in self.decay_at):
            raise ValueError(f"decay_at={self.decay_at}: expected rising shares between 0 and 1")
        return self

    def peak_lr(self, batch_tokens: int) -> float:
        """The rate of a batch of so many tokens, by rule and cap."""
        rate = self.lr
        if self.scaling != "none":
            assert self.reference_tokens is not None
            ratio = batch_tokens / self.reference_tokens
            rate *= ratio if self.scaling == "linear" else ratio**0.5
        return rate if self.lr_cap is None else min(rate, self.lr_cap)

    def warmup_length(self, batch: BatchConfig) -> int:
        """Applied steps of the warm-up."""
        if self.warmup_tokens is None:
            return self.warmup_steps
        tokens = self.warmup_tokens
        if self.scaling == "legw":  # epochs of warm-up grow with the batch: steps stay (You 2019)
            assert self.reference_tokens is not None
            tokens = tokens * batch.tokens // self.reference_tokens
        return batch.steps_for(tokens)

    def decay_length(self, batch: BatchConfig, run_steps: int) -> int:
        """Applied steps from the start of the run to the end of the decay."""
        if self.decay_tokens is not None:
            return batch.steps_for(self.decay_tokens)
        return self.decay_steps or run_steps
