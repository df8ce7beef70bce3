"""The `unigram` kind: a unigram language model of pieces, trained by `sentencepiece`.

`sentencepiece` only trains. Its pieces become a tokenizer.json, which does all encoding, so ids
are the same here and in `transformers`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import DataError, RecipeError
from ..recipe.tokenizer import UnigramTokenizerConfig
from .library import LibraryTokenizer

_SENTENCE_CHARACTERS = 1000  # of at most 4 bytes: sentencepiece skips what exceeds 4192 bytes
# Worse than any segmentation into characters, so that text never becomes such a piece as a whole.
_UNREACHABLE = -1e6


class UnigramTokenizer(LibraryTokenizer):
    """Unigram pieces, bytes for characters outside them; one special id ends every document."""

    kind = "unigram"


def train_unigram(config: UnigramTokenizerConfig, texts: Iterable[str]) -> UnigramTokenizer:
    """Unigram pieces of all of `texts`; the same texts give the same tokenizer.

    RecipeError when the vocabulary cannot hold the characters, DataError when no text is left.
    """
    pieces = _scored_pieces(train_sentencepiece(config, texts))
    return UnigramTokenizer(_library(pieces, config.end_of_document), config.end_of_document)


def train_sentencepiece(config: UnigramTokenizerConfig, texts: Iterable[str]) -> bytes:
    """The trained model as sentencepiece stores it; id 0 stands for what is unknown."""
    import sentencepiece

    model = io.BytesIO()
    # The characters of the pieces that text must not become as a whole: see _UNREACHABLE.
    printable = map(chr, range(0x21, 0x7F))
    required = sorted({"\t", "\n", *printable, *config.end_of_document} - {" "})
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,
            character_coverage=config.character_coverage,
            required_chars="".join(required),
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,  # sums in one order, so that training can be repeated
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, config.vocab_size) from None
    return model.getvalue()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), _SENTENCE_CHARACTERS):
            yield text[start : start + _SENTENCE_CHARACTERS]


def _explained(error: RuntimeError, vocab_size: int) -> Exception:
    if "smaller than required_chars" in str(error):
        what = f"tokenizer.vocab_size {vocab_size} does not hold 256 bytes and every character"
        hint = "raise it or lower tokenizer.character_coverage"
        return RecipeError(f"{what} of the text ({error}); {hint}")
    return DataError(f"sentencepiece cannot train on this text ({error}); give it more documents")


def _scored_pieces(model: bytes) -> list[tuple[str, float]]:
    """Pieces by id with their log probabilities; a blank is a blank, not sentencepiece's sign."""
    import sentencepiece

    trained = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(trained.get_piece_size())
    return [
        (trained.id_to_piece(i), _UNREACHABLE)
        if trained.is_byte(i) or trained.is_unknown(i)
        else (trained.id_to_piece(i).replace("▁", " "), trained.get_score(i))
        for i in ids
    ]


def _library(pieces: list[tuple[str, float]], end_of_document: str) -> dict[str, Any]:
    # Bytes spell everything unknown, so id 0 is free to end documents.
    special = {"id": 0, "content": end_of_document, "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special | flags],
        "normalizer": None,
        # As in training: a piece may begin with a blank and holds no other.
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithNext",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}],
        },
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [[end_of_document, _UNREACHABLE], *map(list, pieces[1:])],
            "byte_fallback": True,
        },
    }
