"""One set of labelled texts for the transfer protocol of Radford et al. 2017."""

from __future__ import annotations

from pydantic import Field

from data_prep.recipe.section import Section


class TransferConfig(Section):
    """Train, validation and test texts with two labels; never trained on by the language model."""

    train: str = Field(description="CSV or JSON lines of labelled texts, plain, .gz or .xz")
    validation: str | None = Field(
        default=None, description="texts that choose C; null = validation_share of train"
    )
    test: str | None = Field(
        default=None, description="texts that are judged; null = test_share of train"
    )
    text_field: str = Field(default="text", description="field that holds the text")
    label_field: str = Field(default="label", description="field that holds one of two labels")
    validation_share: float = Field(default=0.2, gt=0, lt=1, description="where no file is named")
    test_share: float = Field(default=0.2, gt=0, lt=1, description="where no file is named")
    max_texts: int | None = Field(
        default=None, ge=20, description="texts used of each file at most; null = all"
    )
