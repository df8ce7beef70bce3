from __future__ import annotations

import random
import sys

import numpy as np
import pytest

from data_prep.errors import RecipeError
from data_prep.grams import gram_hashes
from data_prep.minhash import band_hashes, bands_for, jaccard, signatures, wordless


def pairs_of_similarity(kept: float, count: int) -> tuple[list[bytes], list[bytes]]:
    """Documents of 200 words, and each with a share of its words replaced."""
    chance = random.Random(0)
    left, right = [], []
    for _ in range(count):
        words = [str(chance.randrange(10**9)) for _ in range(200)]
        changed = [w if chance.random() < kept else str(chance.randrange(10**9)) for w in words]
        left.append(" ".join(words).encode())
        right.append(" ".join(changed).encode())
    return left, right


def test_signatures_estimate_jaccard_as_well_as_datasketch() -> None:
    pytest.importorskip("rensa")
    datasketch = pytest.importorskip("datasketch")
    for kept in (0.5, 0.75, 0.95):
        left, right = pairs_of_similarity(kept, 60)
        exact = np.array([jaccard(a, b, 1) for a, b in zip(left, right, strict=True)])
        ours = np.mean(signatures(left, 1, 256) == signatures(right, 1, 256), axis=1)
        theirs = []
        for pair in zip(left, right, strict=True):
            first, second = (datasketch.MinHash(256) for _ in pair)
            first.update_batch(pair[0].split())
            second.update_batch(pair[1].split())
            theirs.append(first.jaccard(second))
        # One estimate of 256 columns has a standard error of at most 0.031, the mean of 60 0.004.
        assert abs(np.mean(ours - exact)) < 0.015
        assert np.max(np.abs(ours - exact)) < 0.13
        assert np.std(ours - exact) < 1.5 * np.std(np.array(theirs) - exact)


def test_candidates_follow_the_curve_of_bands_and_rows() -> None:
    pytest.importorskip("rensa")
    bands, rows = bands_for(0.6, 64)
    for kept in (0.5, 0.7, 0.8, 0.95):
        left, right = pairs_of_similarity(kept, 400)
        first, second = (band_hashes(signatures(d, 1, 64), bands, rows) for d in (left, right))
        found = np.mean(np.any(first == second, axis=1))
        similarity = np.array([jaccard(a, b, 1) for a, b in zip(left, right, strict=True)])
        assert found == pytest.approx(np.mean(1 - (1 - similarity**rows) ** bands), abs=0.1)


def test_a_signature_depends_on_nothing_but_the_set_of_grams() -> None:
    pytest.importorskip("rensa")
    one, other = b"one two three one two three one", b"three one two three one two"
    together = signatures([b"zero", one, other, b""], 2, 64)
    assert together.shape == (4, 64) and together.dtype == np.uint32
    assert np.array_equal(together[1], together[2])
    assert np.array_equal(together[1:2], signatures([one], 2, 64))
    assert together[0, :4].tolist() == [3530971562, 3502670833, 3380901041, 3857624779]


def test_japanese_without_spaces() -> None:
    pytest.importorskip("rensa")
    text = "この商品はとても良いです。毎日使っていますが、壊れません。友人にもおすすめします。"
    near = text.replace("毎日", "毎週")
    far = "配送が遅くて箱が破れていました。中身は無事でしたが、次は別の店で買おうと思います。"
    documents = [text.encode(), near.encode(), far.encode()]
    bands = band_hashes(signatures(documents, 5, 128), *bands_for(0.6, 128))
    assert np.any(bands[0] == bands[1]) and not np.any(bands[0] == bands[2])
    assert jaccard(documents[0], documents[1], 5) > 0.7
    assert jaccard(documents[0], documents[2], 5) < 0.1


def test_documents_without_words_are_marked() -> None:
    pytest.importorskip("rensa")
    assert wordless(signatures([b"", b"a", b"!?", "。".encode()], 5, 16)).tolist() == [
        True,
        False,
        True,
        True,
    ]
    assert signatures([], 5, 16).shape == (0, 16)
    assert jaccard(b"", b"!?", 5) == 0


def test_jaccard_of_sets_of_grams() -> None:
    assert jaccard(b"a b c d", b"A, B, C; x", 2) == 2 / 4
    assert jaccard(b"a a a a", b"a a", 2) == 1
    assert jaccard(b"a b", b"a b c", 3) == 0
    assert len(gram_hashes([b"a b"], 3)[0]) == 1


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("permutations", [16, 64, 128])
def test_bands_are_those_of_datasketch(threshold: float, permutations: int) -> None:
    lsh = pytest.importorskip("datasketch.lsh")
    assert bands_for(threshold, permutations) == lsh._optimal_param(
        threshold, permutations, 0.3, 0.7
    )


def test_equal_rows_in_different_bands_do_not_meet() -> None:
    hashes = band_hashes(np.full((2, 12), 7, np.uint32), 4, 3)
    assert hashes.shape == (2, 4) and hashes.dtype == np.uint64
    assert len(np.unique(hashes[0])) == 4 and np.array_equal(hashes[0], hashes[1])
    order = np.array([[1, 2, 3], [3, 2, 1], [1, 2, 4]], np.uint32)
    assert len(np.unique(band_hashes(order, 1, 3))) == 3


def test_missing_rensa_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(RecipeError, match="pip install rensa"):
        signatures([b"a"], 5, 16)
