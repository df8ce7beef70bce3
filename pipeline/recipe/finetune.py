"""The `finetune` section: a classifier on labelled text, from an export or any model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from data_prep.recipe.data import CleanConfig
from data_prep.recipe.section import Section

_PATH = "CSV, TSV, JSON lines or Parquet, plain or packed, or a folder that `datasets` opens"


class FinetuneConfig(Section):
    """A sequence classifier of `transformers`, trained through `accelerate`."""

    model: str | None = Field(
        default=None, description="folder of an export or of any model; null = the run's export"
    )
    folder: str | None = Field(default=None, description="target; null = RUN_FOLDER/finetune")
    train: str = Field(description=f"labelled text to learn from: {_PATH}")
    validation: str | None = Field(
        default=None,
        description="texts that choose the best checkpoint; null = validation_share of train",
    )
    test: str | None = Field(
        default=None, description="texts that are judged once, at the end; null = test_share"
    )
    validation_share: float = Field(default=0.1, gt=0, lt=1, description="where no file is named")
    test_share: float = Field(default=0.1, gt=0, lt=1, description="where no file is named")
    text_field: str | list[str] = Field(
        default="text", description="field that holds the text, or a list of fields to be joined"
    )
    join_with: str = Field(default="\n", description="text put between joined fields")
    label_field: str = Field(default="label", description="field that holds the class")
    label_names: dict[str, str] = Field(
        default_factory=dict, description='what labels are called in the result, such as "0": bad'
    )
    clean: CleanConfig | None = Field(
        default=None, description="cleaning of the texts; null = as the data section has it"
    )
    max_texts: int | None = Field(
        default=None, ge=10, description="texts used of each file at most; null = all"
    )
    max_bad_share: float = Field(
        default=0.01, ge=0, le=1, description="share of bad rows past which the stage stops"
    )
    mode: Literal["full", "probe"] = Field(
        default="full", description="full: train all weights; probe: only the layer on frozen ones"
    )
    epochs: int = Field(default=3, ge=1, description="passes over the training texts, at most")
    batch: int = Field(default=32, ge=1, description="texts per optimizer step, of all processes")
    lr: float = Field(default=1e-4, gt=0, description="peak learning rate")
    warmup_share: float = Field(
        default=0.06, ge=0, lt=1, description="share of the steps in which the rate rises"
    )
    weight_decay: float = Field(default=0.01, ge=0, description="of matrices only")
    max_tokens: int = Field(default=256, ge=1, description="tokens of a text that are read")
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        default="none",
        description="weight of a text by its class: none, balanced (inverse to the class's "
        "share), or a number for every class by its name",
    )
    metric: Literal["accuracy", "macro_f1", "mcc", "auroc", "loss"] = Field(
        default="accuracy", description="what the best checkpoint is best at, on validation texts"
    )
    eval_steps: int | None = Field(
        default=None, ge=1, description="steps between two looks at them; null = an epoch"
    )
    patience: int | None = Field(
        default=None, ge=1, description="looks without a better one until training stops; null: all"
    )
    bootstrap_samples: int = Field(default=1000, ge=10, description="resamples of the intervals")
    seed: int | None = Field(
        default=None, ge=0, description="seed of layer, order and splits; null = run.seed, or 0"
    )

    @model_validator(mode="after")
    def _weights_are_positive(self) -> FinetuneConfig:
        if isinstance(self.class_weights, dict):
            for name, weight in self.class_weights.items():
                if not weight > 0:
                    raise ValueError(f"class_weights: {name} has {weight}, expected more than 0")
        return self

    @property
    def data_files(self) -> dict[str, Path]:
        """What texts are read from, by the key that names it."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {key: Path(path) for key, path in named.items() if path is not None}


class FinetuneRecipe(Section):
    """A recipe of its own: a model that is there already, and what it is to learn."""

    finetune: FinetuneConfig

    @model_validator(mode="after")
    def _stands_alone(self) -> FinetuneRecipe:
        for key in ("model", "folder"):
            if getattr(self.finetune, key) is None:
                raise ValueError(f"finetune.{key} is needed in a recipe without a run: set it")
        return self
