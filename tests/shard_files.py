"""Writing shards of given documents, for tests of what reads them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shards import ShardWriter, Split
from data_prep.tokenizers import dtype_for

FINGERPRINT = hashlib.sha256(b"tokenizer").hexdigest()


@dataclass(frozen=True)
class FakeTokenizer:
    """What a writer asks of a tokenizer."""

    vocab_size: int
    fingerprint: str = FINGERPRINT

    @property
    def id_dtype(self) -> np.dtype[Any]:
        return dtype_for(self.vocab_size)


def write_shards(
    folder: Path, documents: list[list[int]], vocab: int = 300, shard_tokens: int = 7,
    reset_documents: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """The shards of `documents`, each closed when it has `shard_tokens`, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = FakeTokenizer(vocab)
    shards: list[dict[str, Any]] = []
    pending: list[list[int]] = []
    for place, ids in enumerate(documents):
        pending.append(ids)
        if sum(map(len, pending)) >= shard_tokens or place == len(documents) - 1:
            writer = ShardWriter(folder / f"train-{len(shards):05d}.shard", tokenizer)  # type: ignore[arg-type]
            for document in pending:
                writer.add(np.array(document, np.int64), np.array([len(document)]))
            shards.append(writer.close())
            pending = []
    entry = {
        "documents": len(documents),
        "tokens": sum(map(len, documents)),
        "bytes": 0,
        "characters": 0,
        "shards": shards,
    }
    found = {"fingerprint": FINGERPRINT, "vocab_size": vocab}
    return {
        "splits": {"train": entry},
        "tokenizer": found,
        "reset_documents": reset_documents,
    }


def write_split(folder: Path, documents: list[list[int]], reset_documents: int = 1) -> Split:
    """The split of `documents` in small shards."""
    manifest = write_shards(folder, documents, reset_documents=reset_documents)
    return Split.open(folder, "train", manifest)
