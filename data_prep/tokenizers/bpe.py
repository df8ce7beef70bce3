"""The `bpe` kind: byte-level byte-pair encoding."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ..recipe.tokenizer import BpeTokenizerConfig
from .fast import FastEncoder
from .library import LibraryTokenizer


class BpeTokenizer(LibraryTokenizer):
    """Byte-level BPE; one special id ends every document."""

    kind = "bpe"

    def __init__(self, content: dict[str, Any], end_of_document: str) -> None:
        super().__init__(content, end_of_document)
        # Faster encoders always recognise special tokens, so they must not know of any.
        plain = content | {"added_tokens": []}
        self._encode = FastEncoder(plain, self.reference, [end_of_document])


def train_bpe(config: BpeTokenizerConfig, texts: Iterable[str]) -> BpeTokenizer:
    """Byte-level BPE of all of `texts`; the same texts give the same tokenizer."""
    import tokenizers as hf

    model = hf.Tokenizer(hf.models.BPE())
    model.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[config.end_of_document],
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return BpeTokenizer(json.loads(model.to_str()), config.end_of_document)
