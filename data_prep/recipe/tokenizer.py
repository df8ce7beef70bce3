"""The `tokenizer` section: how text becomes ids, and what frames a document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .loader import validate
from .section import Section

# Brackets around a letter: every trained kind splits such a name, so no text can ever become it.
EndOfDocument = Annotated[
    str,
    Field(
        pattern="^<.*[A-Za-z].*>$",
        description="name of the id that ends every document, with a letter between < and >",
    ),
]
SampleMegabytes = Annotated[float, Field(gt=0, description="text to train on, 10^6 bytes of UTF-8")]


class BytesTokenizerConfig(Section):
    """256 ids, each the value of a UTF-8 byte; nothing to train."""

    kind: Literal["bytes"]
    prefix: str = Field(default="\n ", description="text put before every document")
    suffix: str = Field(default=" ", description="text put after every document")


class BpeTokenizerConfig(Section):
    """Byte-level BPE, trained on a sample of the train split."""

    kind: Literal["bpe"]
    vocab_size: int = Field(
        default=4096, ge=257, description="ids at most, the special one included"
    )
    end_of_document: EndOfDocument = "<|endoftext|>"
    sample_megabytes: SampleMegabytes = 100


class UnigramTokenizerConfig(Section):
    """Unigram pieces with bytes for rare characters, trained by sentencepiece on a sample."""

    kind: Literal["unigram"]
    vocab_size: int = Field(
        default=8192,
        ge=512,
        description="ids at most, with 256 for bytes and one for each character covered",
    )
    character_coverage: float = Field(
        default=0.9995,
        ge=0.98,
        le=1,
        description="share of the sample's characters that get an id; bytes spell the others",
    )
    end_of_document: EndOfDocument = "<|endoftext|>"
    sample_megabytes: SampleMegabytes = 100


class WordTokenizerConfig(Section):
    """One id per word, the most frequent of a sample; `<unk>` for all others."""

    kind: Literal["word"]
    vocab_size: int = Field(
        default=100_000, ge=3, description="ids at most, the two special ones included"
    )
    lowercase: bool = Field(default=False, description="whether capitals become small letters")
    min_count: int = Field(
        default=2, ge=1, description="occurrences in the sample that a word needs to get an id"
    )
    end_of_document: EndOfDocument = "<|endoftext|>"
    sample_megabytes: SampleMegabytes = 100


class HfTokenizerConfig(Section):
    """A tokenizer of `transformers`, taken as it is; nothing to train."""

    kind: Literal["hf"]
    path: str = Field(description="folder that holds a tokenizer.json")
    end_of_document: str | None = Field(
        default=None,
        description="token of its vocabulary that ends every document; null: its eos token",
    )


AnyTokenizerConfig = (
    BytesTokenizerConfig
    | BpeTokenizerConfig
    | UnigramTokenizerConfig
    | WordTokenizerConfig
    | HfTokenizerConfig
)
TokenizerConfig = Annotated[AnyTokenizerConfig, Field(discriminator="kind")]


def validate_tokenizer(value: Any, where: str = "tokenizer") -> AnyTokenizerConfig:
    """The validated `tokenizer` section of a recipe tree; RecipeError when it is wrong."""
    return validate(TokenizerConfig, value, where)
