"""Words and word n-grams of a block of documents as 64-bit hashes, without a loop over words.

A word is a maximal run of ASCII letters and digits (upper case folded) and of characters beyond
ASCII. Two kinds of characters break that rule: punctuation beyond ASCII separates words, and a
character of a script written without spaces is a word of its own, as is one beyond the basic
plane (rare ideographs, emoji). Equal words have equal hashes on every machine and in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Offsets = NDArray[np.int64]

_JOINS, _SEPARATES, _ALONE = 0, 1, 2
_SEPARATORS = (
    (0x0080, 0x00BF),  # Latin-1 signs
    (0x2000, 0x206F),  # general punctuation
    (0x3000, 0x3004),  # CJK punctuation
    (0x3008, 0x303F),
    (0x30FB, 0x30FB),  # the middle dot of katakana
    (0xFE00, 0xFE6F),  # variation selectors, vertical and small forms
    (0xFF00, 0xFF0F),  # fullwidth and halfwidth signs
    (0xFF1A, 0xFF20),
    (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF65),
)
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # ideographic iteration, closing and zero marks
    (0x3040, 0x9FFF),  # kana to CJK ideographs
    (0xAC00, 0xD7AF),  # Hangul syllables
    (0xF900, 0xFAFF),  # CJK compatibility ideographs
    (0xFF66, 0xFFDC),  # halfwidth kana and Hangul
)
_FOLDED = bytes(b if b >= 0x80 or chr(b).isalnum() else 0 for b in bytes(range(256)).lower())
# Any odd multiplier has an inverse modulo 2**64; Steele and Vigna (2021) give this one.
_BASE = 0xD1342543DE82EF95


def words(documents: Sequence[bytes]) -> tuple[Hashes, Offsets]:
    """One hash for each word of UTF-8 `documents`, and where each document's words begin.

    Returns hashes (words,) and offsets (documents + 1,): the words of document d are
    hashes[offsets[d]:offsets[d + 1]]. Needs about 50 bytes of memory for each byte of text.
    """
    # The spaces at the end stand for the bytes that follow the last character.
    text = bytearray(b" ").join([*documents, b"   "]).translate(_FOLDED)
    folded = np.frombuffer(text, np.uint8)
    border = _mark_characters(folded)
    inside = folded != 0
    border[1:] |= inside[1:] != inside[:-1]
    border[0] = inside[0]
    starts = np.flatnonzero(border & inside)
    ends = np.flatnonzero(border[1:] & inside[:-1]) + 1
    firsts = cumulated([len(document) + 1 for document in documents])
    return _span_hashes(folded, starts, ends), np.searchsorted(starts, firsts)


def gram_hashes(documents: Sequence[bytes], n: int) -> tuple[Hashes, Offsets]:
    """One hash for each run of `n` words of each document; see `grams_of`."""
    return grams_of(*words(documents), n)


def grams_of(hashes: Hashes, offsets: Offsets, n: int) -> tuple[Hashes, Offsets]:
    """The n-grams of documents given as `words` returns them, in the same form.

    A document of fewer than `n` words has one gram of all of them; one without words has none.
    """
    lengths = np.diff(offsets)
    counts = np.maximum(lengths - n + 1, np.minimum(lengths, 1))
    starts = ranges(offsets[:-1], counts)
    ends = starts + np.repeat(np.minimum(lengths, n), counts)
    return _span_hashes(hashes, starts, ends), cumulated(counts)


def ranges(starts: Offsets, counts: Offsets) -> Offsets:
    """start, start + 1, ... for each start, as many as its count, all in one array."""
    offsets = cumulated(counts)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)


def cumulated(counts: Sequence[int] | Offsets) -> Offsets:
    """Offsets (counts + 1,) of consecutive pieces of these sizes, from 0 to their sum."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def mix(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit of a hash on every other."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _mark_characters(folded: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Zero the separators beyond ASCII in place; true where a character that stands alone
    begins, and where the one after it begins."""
    leads = np.flatnonzero(folded >= 0xC2)
    first, second, third = (folded[leads + i].astype(np.int32) for i in range(3))
    two, four = first < 0xE0, first >= 0xF0
    code = (first & 0x0F) << 12 | (second & 0x3F) << 6 | third & 0x3F
    code[two] = (first[two] & 0x1F) << 6 | second[two] & 0x3F
    kind = _kinds()[code]
    kind[four] = _ALONE

    for width, of_width in ((2, two), (3, ~two & ~four)):
        separators = leads[of_width & (kind == _SEPARATES)]
        for i in range(width):
            folded[separators + i] = 0
    border = np.zeros(len(folded), np.bool_)
    alone = kind == _ALONE
    border[leads[alone]] = True
    border[(leads + np.where(four, 4, 3))[alone]] = True
    return border


def _span_hashes(values: NDArray[np.unsignedinteger], starts: Offsets, ends: Offsets) -> Hashes:
    """Hash of values[start:end] for each span: sum of values[start + i] * BASE**i, mixed.

    A span's sum is the difference of two running sums, shifted down to the power zero.
    """
    powers, inverses = _powers(max(16, len(values).bit_length()))
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    return mix((sums[ends] - sums[starts]) * inverses[starts])


@lru_cache(maxsize=4)
def _powers(bits: int) -> tuple[Hashes, Hashes]:
    """The powers of BASE and of its inverse modulo 2**64, for exponents below 2**bits."""

    def table(base: int) -> Hashes:
        factors = np.full(2**bits, base, np.uint64)
        factors[0] = 1
        return np.cumprod(factors, dtype=np.uint64)

    return table(_BASE), table(pow(_BASE, -1, 2**64))


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """What each character of the basic plane does to words."""
    kinds = np.full(2**16, _JOINS, np.uint8)
    for ranges, kind in ((_UNSPACED, _ALONE), (_SEPARATORS, _SEPARATES)):
        for first, last in ranges:
            kinds[first : last + 1] = kind
    return kinds
