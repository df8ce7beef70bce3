"""The `data` section: where text comes from, how it is cleaned, split and laid out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .section import Section

_PATH = "file or glob, relative to the working directory; .gz and .xz are unpacked"
_TEXT_FIELD = "name of the field that holds the text"


class JsonlSource(Section):
    """One JSON object a line."""

    kind: Literal["jsonl"]
    path: str = Field(min_length=1, description=_PATH)
    text_field: str = Field(description=_TEXT_FIELD)


class CsvSource(Section):
    """Comma-separated rows under a header line."""

    kind: Literal["csv"]
    path: str = Field(min_length=1, description=_PATH)
    text_field: str = Field(description=_TEXT_FIELD)
    delimiter: str = Field(default=",", min_length=1, max_length=1, description="one character")


class TextSource(Section):
    """Plain UTF-8 text."""

    kind: Literal["text"]
    path: str = Field(min_length=1, description=_PATH)
    document: Literal["line", "paragraph", "file"] = Field(
        description="what one document is; paragraphs are separated by blank lines"
    )


class ParquetSource(Section):
    """A column of Parquet files."""

    kind: Literal["parquet"]
    path: str = Field(min_length=1, description="file or glob, relative to the working directory")
    text_field: str = Field(description=_TEXT_FIELD)


Source = Annotated[
    JsonlSource | CsvSource | TextSource | ParquetSource, Field(discriminator="kind")
]


class CleanConfig(Section):
    """The cleaning steps, in the order they run."""

    strip_tags: bool = Field(default=True, description="replace HTML tags by a space")
    unescape_html: bool = Field(
        default=True, description="turn entities such as &amp; into characters"
    )
    unicode_nfc: bool = Field(default=True, description="compose characters (Unicode NFC)")
    drop_control: bool = Field(
        default=True, description="drop control characters except white space"
    )
    collapse_whitespace: bool = Field(
        default=True, description="white space to single spaces, ends cut"
    )
    min_characters: int = Field(
        default=1, ge=1, description="shorter documents are dropped, characters"
    )


class SplitConfig(Section):
    """Shares of documents, chosen by a hash of the text so that equal texts stay together."""

    validation: float = Field(default=0.02, gt=0, lt=1, description="share of documents, 0 to 1")
    test: float = Field(default=0.02, ge=0, lt=1, description="share of documents, 0 to 1")
    salt: str = Field(default="split", description="another salt gives another split")

    @model_validator(mode="after")
    def _leave_training_text(self) -> SplitConfig:
        if self.validation + self.test >= 1:
            total = self.validation + self.test
            raise ValueError(f"validation + test is {total}, expected less than 1")
        return self


class DataConfig(Section):
    """The `data` section."""

    folder: str = Field(min_length=1, description="where shards, tokenizer and manifest go")
    sources: list[Source] = Field(min_length=1, description="where text comes from")
    clean: CleanConfig = Field(default=CleanConfig(), description="cleaning steps")
    split: SplitConfig = Field(default=SplitConfig(), description="held-out shares")
    reset_documents: int = Field(
        default=1, ge=0, description="documents between resets of a recurrent state; 0 = never"
    )
    shard_tokens: int = Field(
        default=2**26,
        ge=1,
        description="tokens after which a shard closes at the next document's end",
    )
    seed: int = Field(default=0, ge=0, description="seed of the order of documents")
