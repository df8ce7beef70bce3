"""From a recipe or a folder to a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError
from ..manifest import read_manifest
from ..recipe.tokenizer import (
    AnyTokenizerConfig,
    BpeTokenizerConfig,
    BytesTokenizerConfig,
    HfTokenizerConfig,
    UnigramTokenizerConfig,
)
from .base import CARD, Tokenizer
from .bpe import BpeTokenizer, train_bpe
from .byte import ByteTokenizer
from .library import LibraryTokenizer
from .pretrained import PretrainedTokenizer, open_pretrained
from .unigram import UnigramTokenizer, train_unigram
from .word import WordTokenizer, train_word

_LIBRARY_KINDS: dict[str, type[LibraryTokenizer]] = {
    cls.kind: cls for cls in (BpeTokenizer, UnigramTokenizer, WordTokenizer, PretrainedTokenizer)
}


def train_tokenizer(config: AnyTokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of a recipe, trained on all of `texts`; `bytes` and `hf` never read them.

    The same texts give the same fingerprint. RecipeError or DataError when the recipe or the
    texts do not allow it.
    """
    if isinstance(config, BytesTokenizerConfig):
        return ByteTokenizer(config.prefix, config.suffix)
    if isinstance(config, BpeTokenizerConfig):
        return train_bpe(config, texts)
    if isinstance(config, UnigramTokenizerConfig):
        return train_unigram(config, texts)
    if isinstance(config, HfTokenizerConfig):
        return open_pretrained(config)
    return train_word(config, texts)


def vocabulary_limit(config: AnyTokenizerConfig) -> int:
    """The most ids that the tokenizer of a recipe can have, known before it is trained."""
    if isinstance(config, BytesTokenizerConfig | HfTokenizerConfig):
        return train_tokenizer(config, ()).vocab_size
    return config.vocab_size


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer saved in `folder`; DataError when it is missing or was altered."""
    folder = Path(folder)
    card = read_manifest(folder / CARD)
    kind = card.get("kind")
    tokenizer: Tokenizer
    if kind == "bytes":
        tokenizer = ByteTokenizer(card["prefix"], card["suffix"])
    elif kind in _LIBRARY_KINDS:
        tokenizer = _LIBRARY_KINDS[kind].read(folder, card["end_of_document"])
    else:
        known = ", ".join(("bytes", *_LIBRARY_KINDS))
        raise DataError(f"{folder}: tokenizer kind {kind!r}, expected one of {known}")
    if tokenizer.fingerprint != card["fingerprint"]:
        what = f"fingerprint {tokenizer.fingerprint[:12]}, its card says {card['fingerprint'][:12]}"
        raise DataError(f"{folder}: tokenizer files were altered ({what}); run prepare again")
    return tokenizer
