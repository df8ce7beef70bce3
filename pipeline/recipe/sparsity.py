"""The `sparsity` section: dense training, or a plan of sparse phases (docs/sparsity.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_prep.recipe.section import Section
from pipeline.recipe.phases import check_ends


class DenseConfig(Section):
    """No sparsity."""

    kind: Literal["dense"] = "dense"


class PhaseConfig(Section):
    """What holds until a share of the run has passed."""

    name: str = Field(min_length=1, description="shown in logs and reports")
    until: float = Field(gt=0, le=1, description="share of run.steps at which the phase ends")
    density: float = Field(gt=0, le=1, description="share of the masked weights that is active")
    drop_fraction: float = Field(
        default=0.3, ge=0, lt=1,
        description="share of active weights replaced per update at the phase's begin; falls to 0 "
        "by a cosine at its end",
    )  # fmt: skip
    attention: Literal["dense", "sparse"] = Field(
        default="dense", description="sparse = the pattern of sparsity.attention"
    )


class AttentionConfig(Section):
    """The pattern of attention in phases that ask for it (Hu et al. 2024)."""

    pattern: Literal["local", "strided", "local_strided", "fixed"] = Field(
        default="local_strided",
        description="a band, every window-th earlier position, both, or blocks and their last "
        "positions",
    )
    window: int = Field(default=128, ge=1, description="positions of the band, or the stride")


class MixedConfig(Section):
    """Mixed Sparsity Training (Hu, Li, Wang, Huang 2024), and RigL, SET and static masks as plans
    of the same mechanism."""

    kind: Literal["mixed"]
    plan: Literal["mst", "rigl", "set", "static"] = Field(
        default="mst", description="phases and growth as that method has them"
    )
    phases: list[PhaseConfig] | None = Field(
        default=None, min_length=1, description="phases of your own instead of the plan's"
    )
    flops: float | None = Field(
        default=None, gt=0, lt=1,
        description="share of the dense run's FLOPs to use: the lowest density is solved for it; "
        "null = densities as they stand",
    )  # fmt: skip
    modules: list[str] = Field(
        default=["auto"], min_length=1,
        description="names of modules whose matrices are masked, with * as in file names; auto = "
        "every linear layer but embeddings and head",
    )  # fmt: skip
    mask_head: bool = Field(
        default=False,
        description="mask the output matrix of a softmax too, and with it a tied embedding",
    )
    densities: Literal["uniform", "erdos_renyi"] = Field(
        default="erdos_renyi", description="how a density is shared out among the matrices"
    )
    block: int = Field(
        default=1, ge=1,
        description="side of the square blocks that live and die together; 1 = single weights",
    )  # fmt: skip
    executor: Literal["auto", "masked", "gather", "csr", "triton", "blocks"] = Field(
        default="auto",
        description="how a masked layer computes; auto = the fastest by a short measurement",
    )
    attention: AttentionConfig | None = Field(
        default_factory=AttentionConfig, description="null = dense in every phase"
    )
    update_every: int = Field(
        default=100, ge=2, description="iterations between two changes of the masks"
    )
    gradient_share: float | None = Field(
        default=None, ge=0, le=1,
        description="share of new connections chosen by gradient, the rest at random; null = the "
        "plan's",
    )  # fmt: skip
    skip_optimizer_step: bool = Field(
        default=True, description="the iteration that changes masks moves no weights"
    )
    grown_moments: Literal["auto", "zero", "gradient"] = Field(
        default="auto",
        description="Adam's moments of new connections: zero, or the second from the gradient "
        "that chose them, a warm-up; auto = gradient where betas[1] > 0.97",
    )

    @model_validator(mode="after")
    def _phases_in_order(self) -> MixedConfig:
        if self.phases is not None:
            check_ends([phase.until for phase in self.phases])
        return self


SparsityConfig = Annotated[DenseConfig | MixedConfig, Field(discriminator="kind")]
