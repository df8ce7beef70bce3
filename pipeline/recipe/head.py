"""The `head` section: which output layer and loss (docs/sparse-vocabulary.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from data_prep.recipe.section import Section
from pipeline.recipe.phases import check_ends

SPHERICAL = ("squared", "spherical", "taylor", "z")
OUTSIDE = (
    "only losses that see the outputs through their sum, their sum of squares and the targets' "
    f"outputs can be trained without computing all outputs: {', '.join(SPHERICAL)}. Softmax, "
    "sigmoid and hinge need every output: use head.kind=softmax for them"
)


class SoftmaxHeadConfig(Section):
    """Full softmax with cross-entropy in fp32, computed in chunks of tokens."""

    kind: Literal["softmax"] = "softmax"
    chunk_tokens: int = Field(
        default=2048, ge=1, description="tokens whose logits exist at the same time"
    )
    library: Literal["torch", "deepspeed", "liger", "cce"] | None = Field(
        default=None,
        description="compute it with torch's linear_cross_entropy, DeepSpeed's "
        "chunked_cross_entropy, or on a GPU Liger or Cut Cross-Entropy; null = our own",
    )


class SphericalConfig(Section):
    """A loss that can be trained without computing all outputs (Vincent et al. 2015)."""

    loss: str = Field(
        default="taylor",
        description="taylor, spherical: have probabilities; z: ranks well; squared: plain",
    )
    epsilon: float = Field(
        default=1e-2, gt=0, description="spherical: added to every squared output"
    )
    sharpness: float = Field(default=0.1, gt=0, description="z: A of softplus(A (B - z)) / A")
    z_offset: float = Field(default=10.0, description="z: B, deviations above the mean to reach")

    @field_validator("loss")
    @classmethod
    def _in_the_family(cls, found: str) -> str:
        if found not in SPHERICAL:
            raise ValueError(f"loss {found!r} is outside the spherical family: {OUTSIDE}")
        return found


class GramHeadConfig(SphericalConfig):
    """An explicit output matrix and its exact gradient, written out once a step; any optimizer."""

    kind: Literal["gram"]
    learned_scale: bool = Field(
        default=False, description="train a factor and an offset of all outputs, in the family too"
    )
    sharded: bool = Field(
        default=False,
        description="every rank keeps and trains an equal share of the output matrix's rows, in "
        "fp32, its gradient clipped on its own; not with a matrix tied to the embedding",
    )


class FactoredHeadConfig(SphericalConfig):
    """The source's factored matrix, trained by SGD: for few tokens a step over many outputs."""

    kind: Literal["factored"]
    lr: float = Field(gt=0, description="peak SGD rate of the matrix; follows optim's schedule")
    optimizer: str = Field(default="sgd", description="sgd: no other fits a factored matrix")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled decay of the matrix")
    clip_norm: float = Field(
        default=0.0, ge=0, description="norm to which the matrix's gradient is clipped; 0 = off"
    )

    @field_validator("optimizer")
    @classmethod
    def _sgd(cls, found: str) -> str:
        if found != "sgd":
            raise ValueError(
                f"found {found!r}: Adam and its kin give every weight a scale of its own, which a "
                "factored matrix cannot hold; use sgd, or head.kind=gram with any optimizer"
            )
        return found


class SampledHeadConfig(Section):
    """Softmax over the target and a shared sample of the vocabulary, corrected for its chances."""

    kind: Literal["sampled"]
    samples: int = Field(default=2048, ge=1, description="ids drawn for each micro-batch")


class AdaptiveHeadConfig(Section):
    """torch.nn.AdaptiveLogSoftmaxWithLoss: rare ids in clusters of smaller width (Grave 2017)."""

    kind: Literal["adaptive"]
    cutoffs: list[int] = Field(
        min_length=1, description="first ids of the clusters; ids must be sorted by frequency"
    )
    div_value: float = Field(default=4.0, gt=0, description="width of a cluster over the next")


OneHeadConfig = Annotated[
    SoftmaxHeadConfig | GramHeadConfig | SampledHeadConfig | AdaptiveHeadConfig,
    Field(discriminator="kind"),
]


class HeadPhaseConfig(Section):
    """A head that trains until a share of the run has passed."""

    until: float = Field(gt=0, le=1, description="share of run.steps at which the phase ends")
    head: OneHeadConfig = Field(description="its head; all of them train the same matrix")


class PhasedHeadConfig(Section):
    """One head after the other over the same matrix, as taylor first and softmax at the end."""

    kind: Literal["phased"]
    phases: list[HeadPhaseConfig] = Field(min_length=2, description="in the order of their ends")

    @model_validator(mode="after")
    def _in_order(self) -> PhasedHeadConfig:
        check_ends([phase.until for phase in self.phases])
        for head in (phase.head for phase in self.phases):
            sharded = getattr(head, "sharded", False)
            if head.kind == "adaptive" or sharded:
                what = "head.sharded=true" if sharded else f"head.kind={head.kind}"
                raise ValueError(
                    f"{what} has matrices of its own and cannot share one with other heads"
                )
        return self


HeadConfig = Annotated[
    SoftmaxHeadConfig | GramHeadConfig | FactoredHeadConfig | SampledHeadConfig
    | AdaptiveHeadConfig | PhasedHeadConfig,
    Field(discriminator="kind"),
]  # fmt: skip
