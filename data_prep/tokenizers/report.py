"""How well a tokenizer serves a text: compression, unknowns, and what decoding gives back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Tokenizer


def round_trip_report(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, Any]:
    """Counts and rates of `texts` as whole documents.

    `documents`; `bytes` of UTF-8; `tokens`, framing included; `bytes_per_token`; `unknown_rate`,
    the share of tokens that are the unknown id; `exact_round_trips`, the share of documents that
    decode to their text, framing aside. Rates of nothing are 0, but 1 for `exact_round_trips`.
    """
    encoded = [text.encode() for text in texts]
    ids, lengths = tokenizer.encode_utf8(encoded)
    size, tokens = sum(map(len, encoded)), len(ids)
    unknown = 0 if tokenizer.unknown_id is None else int((ids == tokenizer.unknown_id).sum())
    rows = zip(texts, np.cumsum(lengths), lengths, strict=True)
    exact = sum(_returns(tokenizer, text, ids[end - n : end]) for text, end, n in rows)
    return {
        "documents": len(texts),
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": size / tokens if tokens else 0.0,
        "unknown_rate": unknown / tokens if tokens else 0.0,
        "exact_round_trips": exact / len(texts) if texts else 1.0,
    }


def _returns(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> bool:
    inner = ids if tokenizer.end_id is None else ids[:-1]
    return tokenizer.decode(inner) == f"{tokenizer.prefix}{text}{tokenizer.suffix}"
