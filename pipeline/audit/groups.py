"""Bits per byte of documents by source, rating and length."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.audit.documents import Document

_RESAMPLES = 1000
_MOST_GROUPS = 20

Groups = dict[str, dict[str, Any]]


def by_source(documents: Sequence[Document], bits: np.ndarray) -> Groups:
    """A group for each file, the largest first."""
    return _grouped(documents, bits, lambda document: document.source)


def by_rating(documents: Sequence[Document], bits: np.ndarray) -> Groups:
    """A group for each label; empty where the shards keep none."""
    rated = [place for place, document in enumerate(documents) if document.label is not None]
    found = _grouped([documents[i] for i in rated], bits[rated], lambda d: str(d.label))
    return dict(sorted(found.items(), key=lambda pair: _as_number(pair[0])))


def by_length(documents: Sequence[Document], bits: np.ndarray) -> Groups:
    """Groups of documents up to twice as long as the group before, in bytes of text."""
    powers = [int(math.log2(max(1, _size(document)))) for document in documents]
    found: Groups = {}
    for power in sorted(set(powers)):
        mine = [place for place, its in enumerate(powers) if its == power]
        name = f"{2**power:,} to {2 ** (power + 1) - 1:,} bytes"
        found[name] = summary([_size(documents[i]) for i in mine], bits[mine])
    return found


def summary(sizes: Sequence[int], bits: np.ndarray) -> dict[str, Any]:
    """`bits_per_byte` of all documents together and its 95 % limits from drawing them again.

    `sizes` in bytes and `bits`, one a document; `low` and `high` are None below two documents.
    """
    lengths = np.array(sizes, float)
    result = {
        "documents": len(lengths),
        "bytes": int(lengths.sum()),
        "bits_per_byte": float(bits.sum() / lengths.sum()),
        "low": None,
        "high": None,
    }
    if len(lengths) > 1:
        shape = (_RESAMPLES, len(lengths))
        chosen = np.random.default_rng(0).integers(len(lengths), size=shape)
        drawn = bits[chosen].sum(axis=1) / lengths[chosen].sum(axis=1)
        result["low"], result["high"] = map(float, np.quantile(drawn, [0.025, 0.975]))
    return result


def _grouped(
    documents: Sequence[Document], bits: np.ndarray, name: Callable[[Document], str]
) -> Groups:
    places: dict[str, list[int]] = defaultdict(list)
    for place, document in enumerate(documents):
        places[name(document)].append(place)
    largest = sorted(places.items(), key=lambda pair: -len(pair[1]))[:_MOST_GROUPS]
    return {
        group: summary([_size(documents[i]) for i in mine], bits[mine]) for group, mine in largest
    }


def _size(document: Document) -> int:
    return len(document.text.encode())


def _as_number(label: str) -> tuple[float, str]:
    try:
        return float(label), label
    except ValueError:
        return math.inf, label
