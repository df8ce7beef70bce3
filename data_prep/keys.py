"""What decides a document's split, place and twins: a 128-bit hash of its text.

Nothing else decides them, so neither renaming, reordering nor adding files moves a document to
another split, and equal texts never straddle splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xxhash

from .recipe.data import SplitConfig

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

_WHITESPACE = b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"  # what str.split() cuts at, in ASCII
_LOWER = bytes(range(256)).lower()


def normalised(raw: bytes) -> bytes:
    """UTF-8 text without case and white space: texts equal in this are exact duplicates."""
    if raw.isascii():
        return raw.translate(_LOWER, _WHITESPACE)
    return "".join(raw.decode().casefold().split()).encode()


def document_keys(raws: Sequence[bytes]) -> np.ndarray:
    """(documents, 2) uint64: xxh3-128 of each text."""
    digests = b"".join(map(xxhash.xxh3_128_digest, raws))
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)


def split_numbers(keys: np.ndarray, config: SplitConfig) -> np.ndarray:
    """(documents,) uint8: the place in SPLITS of each key's split."""
    share = mixed(keys[:, 1], f"split/{config.salt}") / 2.0**64
    held_out = np.where(share < config.validation, 1, 2)
    return np.where(share < config.validation + config.test, held_out, 0).astype(np.uint8)


def mixed(values: np.ndarray, purpose: str) -> np.ndarray:
    """uint64 values permuted by a key made from `purpose` (the finaliser of splitmix64)."""
    mixing: np.ndarray = values ^ np.uint64(xxhash.xxh3_64_intdigest(purpose.encode()))
    with np.errstate(over="ignore"):
        mixing = (mixing ^ (mixing >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixing = (mixing ^ (mixing >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixing ^ (mixing >> np.uint64(31))
