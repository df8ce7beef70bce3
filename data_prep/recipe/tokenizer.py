"""The `tokenizer` section: how text becomes ids, and what frames a document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .loader import validate
from .section import Section


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
    # Brackets around a letter: BPE splits such a name, so no merge can ever equal it.
    end_of_document: str = Field(
        default="<|endoftext|>",
        pattern="^<.*[A-Za-z].*>$",
        description="name of the id that ends every document, with a letter between < and >",
    )
    sample_megabytes: float = Field(
        default=100, gt=0, description="text to train on, 10^6 bytes of UTF-8"
    )


TokenizerConfig = Annotated[BytesTokenizerConfig | BpeTokenizerConfig, Field(discriminator="kind")]


def validate_tokenizer(
    value: Any, where: str = "tokenizer"
) -> BytesTokenizerConfig | BpeTokenizerConfig:
    """The validated `tokenizer` section of a recipe tree; RecipeError when it is wrong."""
    return validate(TokenizerConfig, value, where)
