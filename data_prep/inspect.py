"""A look into a prepared folder: verified checksums, sizes, and a few documents as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .shards import Prepared, Split, read_header
from .tokenizers import Tokenizer

_SHOWN_DOCUMENTS = 3
_SHOWN_CHARACTERS = 300


def inspect(folder: Path | str) -> None:
    """Print what a prepared folder holds; DataError when anything in it is altered."""
    prepared = Prepared.open(folder, verify=True)
    tokenizer = prepared.tokenizer()
    print(f"{folder}: all checksums agree")
    print(f"data        {prepared.fingerprint}")
    print(f"tokenizer   {tokenizer.kind}, {tokenizer.vocab_size} ids, {tokenizer.fingerprint}")
    for name, entry in prepared.manifest["splits"].items():
        split = prepared.split(name)
        counts = f"{split.documents:,} documents, {split.tokens:,} tokens, {split.bytes:,} bytes"
        print(f"{name:<12}{counts}, {len(split.resets):,} resets")
        for shard in entry["shards"]:
            header = read_header(prepared.folder / shard["path"])
            facts = f"version {header.version}, {header.itemsize} bytes an id"
            print(f"  {shard['path']}  {facts}, {header.tokens:,} tokens")
    _show_documents(prepared.split("train"), tokenizer)


def _show_documents(split: Split, tokenizer: Tokenizer) -> None:
    random = np.random.default_rng()
    chosen = random.choice(split.documents, min(_SHOWN_DOCUMENTS, split.documents), replace=False)
    for index in sorted(chosen.tolist()):
        start = int(split.document_ends[index - 1]) if index else 0
        text = tokenizer.decode(split.read(start, int(split.document_ends[index])))
        print(f"train document {index}: {text[:_SHOWN_CHARACTERS]!r}")
