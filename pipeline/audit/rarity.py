"""Bits per byte of words by how often they stand in the training text.

A text is cut into words, each with the blanks before it, so that every byte belongs to one and the
parts add up to the whole. A token counts for the word in which it ends.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data_prep.tokenizers import Tokenizer
from pipeline.audit.documents import Document
from pipeline.audit.groups import summary

_PIECE = re.compile(r"\s*\S+|\s+$")
_AROUND = re.compile(r"^\W+|\W+$")
_BUCKETS = (("never", 0), ("1 to 9 times", 9), ("10 to 99 times", 99),
            ("100 to 999 times", 999))  # fmt: skip
_OFTEN = "1,000 times or more"
_NO_WORD = "signs, no word"


def count_words(documents: Iterable[Document]) -> Counter[str]:
    """How often each word stands in the documents, in lower case, signs around it left off."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(filter(None, map(_word, document.text.split())))
    return counts


def by_rarity(
    documents: Sequence[Document],
    nats: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    counts: Counter[str],
) -> dict[str, dict[str, Any]]:
    """Bits per byte of each bucket of words; a document is what is drawn again for the limits.

    `nats` of each token of each document, float64.
    """
    sizes: dict[str, list[int]] = defaultdict(list)
    bits: dict[str, list[float]] = defaultdict(list)
    for document, losses in zip(documents, nats, strict=True):
        for bucket, (size, code) in _of_document(document, losses, tokenizer, counts).items():
            sizes[bucket].append(size)
            bits[bucket].append(code)
    names = [*(name for name, _ in _BUCKETS), _OFTEN, _NO_WORD]
    return {name: summary(sizes[name], np.array(bits[name])) for name in names if name in sizes}


def _of_document(
    document: Document, losses: np.ndarray, tokenizer: Tokenizer, counts: Counter[str]
) -> dict[str, tuple[int, float]]:
    """Bytes and bits of each bucket in a document."""
    pieces = [(match.end(), match.group()) for match in _PIECE.finditer(document.text)]
    ends = np.array([end for end, _ in pieces])
    reached = tokenizer.token_ends(document.text)
    owners = np.minimum(np.searchsorted(ends, reached, "left"), len(ends) - 1)
    of_piece = np.bincount(owners, losses / np.log(2), minlength=len(pieces))
    found: dict[str, tuple[int, float]] = {}
    for (_, piece), code in zip(pieces, of_piece.tolist(), strict=True):
        bucket = _bucket(_word(piece), counts)
        size, before = found.get(bucket, (0, 0.0))
        found[bucket] = (size + len(piece.encode()), before + code)
    return found


def _word(piece: str) -> str:
    return _AROUND.sub("", piece.strip().lower())


def _bucket(word: str, counts: Counter[str]) -> str:
    if not word:
        return _NO_WORD
    return next((name for name, most in _BUCKETS if counts[word] <= most), _OFTEN)
