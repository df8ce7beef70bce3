"""Near duplicates: MinHash signatures, their bands for locality-sensitive hashing, exact Jaccard.

Two documents agree in each column of their signatures with the probability of their Jaccard
similarity, the share of n-grams that they have in common (Broder 1997). Documents that agree in
every column of one band are candidates; `jaccard` then decides.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from .errors import RecipeError
from .grams import Hashes, gram_hashes, mix

Signatures = NDArray[np.uint32]

_SEED = 1
_NO_GRAM = np.uint32(0xFFFFFFFF)
# A missed duplicate stays in the corpus; a false candidate only costs an exact comparison.
_FALSE_POSITIVE_WEIGHT, _FALSE_NEGATIVE_WEIGHT = 0.3, 0.7


def signatures(documents: Sequence[bytes], ngram: int, permutations: int) -> Signatures:
    """MinHash signatures of UTF-8 `documents` over their word n-grams: (documents, permutations).

    Documents without words have equal signatures although they share nothing: see `wordless`.
    Raises RecipeError where rensa is not installed.
    """
    # Documents are spread over processes, so rensa's own threads would only compete with them.
    # It reads the variable once, at its first call.
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    try:
        from rensa import RMinHash
    except ImportError:
        raise RecipeError("data.duplicates.near needs rensa: pip install rensa") from None
    grams, offsets = gram_hashes(documents, ngram)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        grams, offsets.astype(np.uint64), permutations, _SEED
    )
    values = chain.from_iterable(matrix.to_rows())
    shape = len(documents), permutations
    return np.fromiter(values, np.uint32, shape[0] * shape[1]).reshape(shape)


def wordless(signatures: Signatures) -> NDArray[np.bool_]:
    """True for documents without a single word, which are no one's duplicate: (documents,)."""
    return np.all(signatures == _NO_GRAM, axis=1)


def bands_for(threshold: float, permutations: int) -> tuple[int, int]:
    """The number of bands and of rows in each that best tell pairs above `threshold` from others.

    Pairs of similarity s become candidates with probability 1 - (1 - s**rows)**bands. The best
    split has the smallest weighted area of wrong decisions, as in datasketch's MinHashLSH.
    """
    splits = [
        (bands, rows)
        for bands in range(1, permutations + 1)
        for rows in range(1, permutations // bands + 1)
    ]
    similarity = (np.arange(2000) + 0.5) / 2000
    below = similarity < threshold

    def cost(split: tuple[int, int]) -> float:
        bands, rows = split
        missed = (1 - similarity**rows) ** bands
        false_positives = np.sum(1 - missed[below])
        false_negatives = np.sum(missed[~below])
        return float(
            _FALSE_POSITIVE_WEIGHT * false_positives + _FALSE_NEGATIVE_WEIGHT * false_negatives
        )

    return min(splits, key=cost)


def band_hashes(signatures: Signatures, bands: int, rows: int) -> Hashes:
    """One hash for each band of each signature, no band like another: (documents, bands)."""
    values = signatures[:, : bands * rows].reshape(-1, bands, rows).astype(np.uint64)
    factors = mix(np.arange(1, bands * rows + 1, dtype=np.uint64)) | np.uint64(1)
    return mix(np.einsum("dbr,br->db", values, factors.reshape(bands, rows)))


def jaccard(a: bytes, b: bytes, ngram: int) -> float:
    """The share of the n-grams of two documents that both have; 0 where neither has words."""
    grams, offsets = gram_hashes([a, b], ngram)
    first, second = np.unique(grams[: offsets[1]]), np.unique(grams[offsets[1] :])
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / max(len(first) + len(second) - shared, 1)
