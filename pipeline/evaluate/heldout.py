"""Loss of an exported model on text it has not seen, in units that can be compared.

The test split, or any text file as it stands.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.errors import DataError
from data_prep.files import read_text
from data_prep.shards import Split
from data_prep.tokenizers import Tokenizer
from pipeline.data.units import Sized, loss_units
from pipeline.evaluate.model import LanguageModel
from pipeline.evaluate.walk import Reading, Total, walk

_DECODED_TOKENS = 2**20  # at once, to count words


def heldout(
    model: LanguageModel, split: Split, reading: Reading, max_tokens: int
) -> dict[str, Any]:
    """Mean loss over the first `max_tokens` predicted tokens of `split`, and how it was read.

    `top1` and `top10` are the shares of tokens that were the likeliest, or among the ten. A head
    without probabilities has these alone. DataError when the split is empty.
    """
    tokens = min(split.tokens - 1, max_tokens)
    if tokens < 1 or not split.bytes:
        raise DataError(
            f"the {split.name} split holds {split.tokens} tokens, at least 2 are needed: raise "
            f"data.split.{split.name} or give more text"
        )
    total = walk(model, split, range(tokens), reading)
    units = {}
    if model.has_probabilities:
        words = _words(model.tokenizer, split, tokens)
        text = _read_text(model.tokenizer, split, tokens + 1)
        units = loss_units(total.nats / tokens, text) | _per_word(total.nats, words)
    return units | _counts(model, total, tokens, reading)


def text_loss(
    model: LanguageModel, name: str, path: Path | str, reading: Reading
) -> dict[str, Any]:
    """The same over all of a text file, which is read as it stands, as one document.

    `unknown` is the share of its tokens that stand for words outside the vocabulary: bits per byte
    of a tokenizer that has such a token leave out what those words were. DataError when the file
    cannot be read or is empty.
    """
    text = read_text(Path(path))
    if not text:
        raise DataError(f"{path} is empty, expected text: correct eval.texts.{name}")
    ids = model.tokenizer.encode_prompt(text)
    # The frame before a document is given; without one, the first token cannot be predicted.
    first = max(1, model.framing.prefix)
    if len(ids) <= first:
        raise DataError(f"{path} is a single token, at least 2 are needed: give more text")
    tokens = len(ids) - first
    total = walk(model, _Text(name, ids), range(first - 1, len(ids) - 1), reading)
    units: dict[str, Any] = {}
    if model.has_probabilities:
        size = _Size(tokens, len(text.encode()), len(text))
        units = loss_units(total.nats / tokens, size) | _per_word(total.nats, len(text.split()))
    if (unknown := model.tokenizer.unknown_id) is not None:
        units["unknown"] = float(np.mean(ids[first:] == unknown))
    return units | _counts(model, total, tokens, reading)


class _Text:
    """One text as a stream; its state is never zeroed on the way."""

    def __init__(self, name: str, ids: np.ndarray) -> None:
        self.name = name
        self._ids = ids

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._ids[start:stop]

    def resets(self, starts: np.ndarray, length: int) -> np.ndarray:
        return np.zeros((len(starts), length), bool)


class _Size(NamedTuple):
    tokens: int
    bytes: int
    characters: int


def _counts(model: LanguageModel, total: Total, tokens: int, reading: Reading) -> dict[str, Any]:
    how: dict[str, Any] = {"tokens": tokens}
    if model.recurrent:
        how["lanes"] = min(reading.batch, math.ceil(tokens / reading.window))
    else:
        how |= {"window_tokens": reading.window, "stride_tokens": reading.stride}
    return {"top1": total.top1 / tokens, "top10": total.top10 / tokens} | how


def _per_word(nats: float, words: int) -> dict[str, Any]:
    return {"ppl_per_word": math.exp(min(nats / max(1, words), 700)), "words": words}


def _read_text(tokenizer: Tokenizer, split: Split, tokens: int) -> Sized:
    """The sizes of the first `tokens` of a split, without framing; those of all of it where that is
    what was read, or where ids do not spell the text."""
    if tokens == split.tokens or tokenizer.unknown_id is not None:
        return split
    ends = split.document_ends
    ended = int(np.searchsorted(ends, tokens, "right"))
    begun = ended + (not ended or int(ends[ended - 1]) < tokens)
    frames = tokenizer.prefix * begun + tokenizer.suffix * ended
    size, characters = -len(frames.encode()), -len(frames)
    for at in range(0, tokens, _DECODED_TOKENS):
        text = tokenizer.decode(split.read(at, min(at + _DECODED_TOKENS, tokens)))
        size, characters = size + len(text.encode()), characters + len(text)
    return _Size(tokens, size, characters)


def _words(tokenizer: Tokenizer, split: Split, tokens: int) -> int:
    """How many strings without white space the predicted tokens spell."""
    words = 0
    for at in range(1, tokens + 1, _DECODED_TOKENS):
        ids = split.read(at, min(at + _DECODED_TOKENS, tokens + 1))
        # The special token between documents vanishes: it would join the words beside it.
        ends = np.flatnonzero(ids == tokenizer.end_id)  # none where there is no such token
        words += sum(len(tokenizer.decode(piece).split()) for piece in np.split(ids, ends))
    return words
