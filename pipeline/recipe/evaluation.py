"""The `eval` section: held-out loss while training, sentiment and samples afterwards."""

from __future__ import annotations

from pydantic import Field, model_validator

from data_prep.recipe.section import Section
from pipeline.recipe.tasks import TaskConfig
from pipeline.recipe.transfer import TransferConfig


class SentimentConfig(Section):
    """Features of the exported model, an L1 logistic regression on top."""

    path: str = Field(description="JSON lines of rated texts, plain, .gz or .xz; never trained on")
    text_field: str = Field(default="text", description="field that holds the text")
    score_field: str = Field(default="valence", description="field that holds the rating")
    negative_below: float = Field(default=-0.5, description="ratings below this are negative")
    positive_above: float = Field(default=0.5, description="ratings above this are positive")
    folds: int = Field(
        default=5, ge=2, le=10, description="cross-validation folds; every text is held out once"
    )
    bootstrap_samples: int = Field(default=1000, ge=10, description="resamples of the interval")

    @model_validator(mode="after")
    def _ordered(self) -> SentimentConfig:
        if self.negative_below > self.positive_above:
            raise ValueError("negative_below must not exceed positive_above")
        return self


class LastWordConfig(Section):
    """Passages whose last word is to be predicted, as LAMBADA's."""

    path: str = Field(description="CSV or JSON lines of passages, plain, .gz or .xz")
    text_field: str = Field(default="text", description="field that holds the passage")
    max_texts: int | None = Field(
        default=None, ge=1, description="passages used at most; null = all"
    )


class EvalConfig(Section):
    """In-loop evaluation reads the validation split, the evaluate stage the test split."""

    every_steps: int = Field(
        default=0, ge=0, description="applied steps between evaluations; 0 = only the end"
    )
    max_tokens: int = Field(
        default=262144, ge=1, description="tokens of the split that are read at most"
    )
    batch: int = Field(default=32, ge=1, description="instances a device evaluates at once")
    stride_tokens: int | None = Field(
        default=None,
        ge=1,
        description="evaluate stage, Transformers: tokens from one window of held-out text to the "
        "next; null = batch.window_tokens, no overlap",
    )
    texts: dict[str, str] = Field(
        default_factory=dict,
        description="text files, plain, .gz or .xz, whose loss is measured; one document each",
    )
    sentiment: SentimentConfig | None = Field(default=None, description="sentiment evaluation")
    transfer: dict[str, TransferConfig] = Field(
        default_factory=dict, description="sets of labelled texts for the transfer protocol"
    )
    last_word: dict[str, LastWordConfig] = Field(
        default_factory=dict, description="sets of passages whose last word is predicted"
    )
    tasks: list[TaskConfig] = Field(
        default_factory=list, description="tasks judged by likelihood: HellaSwag and its like"
    )
    prompts: list[str] = Field(default_factory=list, description="beginnings of generated samples")
    sample_tokens: int = Field(default=160, ge=1, description="tokens generated per prompt")
    temperature: float = Field(default=0.8, gt=0, description="sampling temperature")
