"""The `finetune` section: a classifier on labelled text, from the export."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_prep.recipe.section import Section


class FinetuneConfig(Section):
    """All weights and a new linear layer on the pooled hidden state, through `accelerate`."""

    path: str = Field(description="CSV or JSON lines of labelled text, plain, .gz or .xz")
    text_field: str = Field(default="text", description="field that holds the text")
    label_field: str = Field(default="label", description="field that holds the class")
    mode: Literal["full", "probe"] = Field(
        default="full", description="train all weights, or the layer"
    )
    epochs: int = Field(default=2, ge=1, description="passes over the training texts")
    batch: int = Field(default=32, ge=1, description="texts per optimizer step")
    lr: float = Field(default=1e-4, gt=0, description="peak learning rate")
    max_tokens: int = Field(default=256, ge=1, description="tokens of a text that are read")
    test_share: float = Field(
        default=0.2, gt=0, lt=1, description="share held out for the accuracy"
    )
    max_texts: int | None = Field(default=None, ge=10, description="texts used at most; null = all")
