"""Small token streams in real shards, and in memory for tests of the order alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from data_prep.shards import ShardWriter, Split

FINGERPRINT = hashlib.sha256(b"tokenizer").hexdigest()


def write_split(
    folder: Path, documents: list[tuple[list[int], bool]], vocab: int = 300, shard_tokens: int = 7
) -> Split:
    """A split of (ids, whether a reset is due) in shards of about `shard_tokens`."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype("u2")
    writer = ShardWriter(folder, "train", FINGERPRINT, vocab, dtype, shard_tokens)
    for ids, reset in documents:
        writer.add(np.array(ids, dtype), reset)
    entry = {
        "documents": len(documents),
        "tokens": sum(len(ids) for ids, _ in documents),
        "bytes": 0,
        "characters": 0,
        "shards": writer.close(),
    }
    tokenizer = {"fingerprint": FINGERPRINT, "vocab_size": vocab}
    return Split.open(folder, "train", {"splits": {"train": entry}, "tokenizer": tokenizer})


class Stream(Split):
    """A split in memory."""

    def __init__(self, ids: np.ndarray, resets: list[int]) -> None:
        self.name, self.tokens, self.dtype = "train", len(ids), ids.dtype
        self.resets = np.array(sorted(resets), np.int64)
        self.all = ids

    def read(self, start: int, stop: int) -> np.ndarray:
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"{start}:{stop} of {self.tokens}")
        return self.all[start:stop].copy()


def random_stream(tokens: int, seed: int, reset_every: int = 5) -> Stream:
    rng = np.random.default_rng(seed)
    resets = np.flatnonzero(rng.random(tokens) < 1 / reset_every).tolist()
    return Stream(rng.integers(0, 300, tokens).astype("u2"), resets)
