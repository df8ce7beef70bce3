"""The members of `data.sources`: what kind of file text comes from, and which fields of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .section import Section

_PATH = (
    "file or glob, or a list of them, relative to the working directory; "
    ".gz, .bz2, .xz and .zst are unpacked while reading"
)
_FIELD = Annotated[str, Field(min_length=1)]
_FIELDS = Annotated[list[_FIELD], Field(min_length=1)]


class FileSource(Section):
    """What every kind of file has."""

    path: str | _FIELDS = Field(description=_PATH)
    weight: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="times a training document occurs; 0.5 keeps every second one, by its hash",
    )
    licence: str = Field(default="unknown", description="licence of the text, for the data card")
    origin: str = Field(default="", description="where the text was found, for the data card")


class FieldSource(FileSource):
    """Rows with named fields."""

    text_field: str | _FIELDS = Field(
        description="name of the field that holds the text, or a list of fields to be joined"
    )
    join_with: str = Field(default="\n", description="text put between joined fields")
    label_field: str | None = Field(
        default=None, description="field kept as label in the index of documents"
    )
    id_field: str | None = Field(
        default=None, description="field kept as id in the index of documents"
    )

    @property
    def text_fields(self) -> list[str]:
        """The text fields as a list."""
        return [self.text_field] if isinstance(self.text_field, str) else self.text_field

    @property
    def fields(self) -> list[str]:
        """All fields that are read: text, then label and id where they are named."""
        return self.text_fields + [f for f in (self.label_field, self.id_field) if f]


class JsonlSource(FieldSource):
    """One JSON object a line, such as the Amazon reviews of 2014 and 2018."""

    kind: Literal["jsonl"]


class CsvSource(FieldSource):
    """Delimited rows under a header line; TSV with delimiter "\\t"."""

    kind: Literal["csv"]
    delimiter: str = Field(default=",", min_length=1, max_length=1, description="one character")
    quoted: bool = Field(
        default=True,
        description="fields may stand in double quotes; false takes a quote as it stands, as many "
        "TSV files mean it, where one at the head of a field would swallow the lines that follow",
    )


class TextSource(FileSource):
    """Plain UTF-8 text."""

    kind: Literal["text"]
    document: Literal["line", "paragraph", "file"] = Field(
        description="what one document is; paragraphs are separated by blank lines"
    )
    piece_characters: int | None = Field(
        default=None,
        ge=100,
        description="cut longer documents into pieces of at most so many characters, at white "
        "space where there is some",
    )


class ParquetSource(FieldSource):
    """Columns of Parquet files."""

    kind: Literal["parquet"]


class HubSource(FieldSource):
    """Whatever `datasets.load_dataset` opens: a local folder, or a name on the hub."""

    kind: Literal["datasets"]
    path: str = Field(min_length=1, description="local folder or hub name of the dataset")
    name: str | None = Field(default=None, description="configuration of the dataset")
    split: str = Field(default="train", description="split of the dataset to read")
    streaming: bool = Field(
        default=True, description="read while downloading; false downloads all of it first"
    )


Source = Annotated[
    JsonlSource | CsvSource | TextSource | ParquetSource | HubSource,
    Field(discriminator="kind"),
]
