from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.grams import Hashes, Offsets, gram_hashes, grams_of, words

JOINS = "abYZ09éßжΩשनע\u0301"
SEPARATES = " \n,.'-_\x00«\u00a0\u00bf\u2019\u2026\u200b、。「」・！（：～｡\ufe0f"
ALONE = "日本語々のテーｱกไລမខ한글豈😀𠀀🇯"
texts = st.text(st.sampled_from(JOINS + SEPARATES + ALONE), max_size=30)


def obvious_words(text: str) -> list[str]:
    found = [""]
    for character in text:
        if character in JOINS:
            found[-1] += character.lower() if character.isascii() else character
        else:
            found += ["" if character in SEPARATES else character, ""]
    return [word for word in found if word]


def obvious_grams(text: str, n: int) -> list[tuple[str, ...]]:
    found = obvious_words(text)
    return [tuple(found[i : i + n]) for i in range(max(len(found) - n, 0) + 1) if found]


def assert_stand_for(
    hashed: tuple[Hashes, Offsets], expected: Sequence[Sequence[Hashable]]
) -> None:
    """Hashes are counted as `expected` per document, and equal exactly where it is equal."""
    hashes, offsets = hashed
    assert hashes.dtype == np.uint64 and offsets.dtype == np.int64
    assert np.diff(offsets).tolist() == [len(items) for items in expected]
    pairs = set(zip((item for items in expected for item in items), hashes.tolist(), strict=True))
    assert len(pairs) == len({item for item, _ in pairs}) == len({hash_ for _, hash_ in pairs})


@given(st.lists(texts, max_size=6))
def test_words_are_those_of_the_obvious_splitting(documents: list[str]) -> None:
    encoded = [document.encode() for document in documents]
    assert_stand_for(words(encoded), [obvious_words(document) for document in documents])


@given(st.lists(texts, max_size=6), st.integers(1, 15))
def test_grams_are_the_runs_of_words(documents: list[str], n: int) -> None:
    encoded = [document.encode() for document in documents]
    assert_stand_for(gram_hashes(encoded, n), [obvious_grams(text, n) for text in documents])


@given(st.lists(st.text(), max_size=6))
def test_neighbours_in_the_block_do_not_matter(documents: list[str]) -> None:
    encoded = [document.encode() for document in documents]
    hashes, offsets = words(encoded)
    for document, first, last in zip(encoded, offsets[:-1], offsets[1:], strict=True):
        assert np.array_equal(words([document])[0], hashes[first:last])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"It's the BEST, 10/10!", 6),
        ("naïve café—crème".encode(), 3),
        ("とても良い。Good商品！".encode(), 5 + 1 + 2),
        ("ดีมาก".encode(), 5),
        ("좋아요 👍🏽".encode(), 5),
        (b"", 0),
        (b" ... ", 0),
    ],
)
def test_number_of_words(text: bytes, expected: int) -> None:
    assert len(words([text])[0]) == expected


def test_several_lengths_from_one_pass() -> None:
    documents = [b"a b c d", b"", b"a b"]
    found = words(documents)
    for n in (1, 2, 3):
        for several, alone in zip(grams_of(*found, n), gram_hashes(documents, n), strict=True):
            assert np.array_equal(several, alone)


def test_hashes_are_the_same_on_every_machine() -> None:
    """Stored signatures and indexes depend on these values."""
    assert words([b"Good, good", "良い".encode()])[0].tolist() == [
        7440133842191005049,
        7440133842191005049,
        17896239896478473532,
        2958511997044024271,
    ]
    assert gram_hashes([b"so very good"], 2)[0].tolist() == [
        440554595102472013,
        5641337405592399903,
    ]


def test_many_distinct_words_do_not_collide() -> None:
    text = " ".join(f"{i:x}" for i in range(200_000))
    assert len(np.unique(words([text.encode()])[0])) == 200_000
