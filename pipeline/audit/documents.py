"""Documents of a prepared split with what the shards keep about each: its file and its label."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as parquet

from data_prep.errors import DataError
from data_prep.shards import Prepared
from data_prep.tokenizers import Tokenizer


class Document(NamedTuple):
    """A document's text without its frame."""

    text: str
    source: str  # the last two parts of its file's path
    label: str | None

    @property
    def key(self) -> str:
        """The same for the same text in every run, whatever its tokenizer."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def choose_documents(
    prepared: Prepared, tokenizer: Tokenizer, split: str, most: int, seed: int
) -> list[Document]:
    """A seeded choice of at most `most` documents with text, in the order of the split. The order
    does not depend on the tokenizer, so runs on the same text read the same documents."""
    count = prepared.split(split).documents
    places = np.random.default_rng(seed).choice(count, min(most, count), replace=False)
    return list(read_documents(prepared, tokenizer, split, np.sort(places)))


def first_documents(
    prepared: Prepared, tokenizer: Tokenizer, split: str, most_tokens: int
) -> Iterator[Document]:
    """The documents at the beginning of a split, `most_tokens` tokens of them at most."""
    ends = prepared.split(split).document_ends
    count = int(np.searchsorted(ends, most_tokens, "right"))
    return read_documents(prepared, tokenizer, split, np.arange(count))


def read_documents(
    prepared: Prepared, tokenizer: Tokenizer, split: str, places: np.ndarray
) -> Iterator[Document]:
    """The documents at the ascending `places` of a split, as far as they have text."""
    stream = prepared.split(split)
    ends = stream.document_ends
    for shard, first, last in _shards(prepared, split):
        mine = places[(places >= first) & (places < last)]
        rows = _index(prepared.folder / shard, mine - first)
        for place, (file, label) in zip(mine.tolist(), rows, strict=True):
            start = int(ends[place - 1]) if place else 0
            text = unframed(tokenizer, stream.read(start, int(ends[place])))
            if text.strip():
                yield Document(text, "/".join(Path(file).parts[-2:]), label)


def unframed(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """The text of a document's ids without what the tokenizer puts around it."""
    text = tokenizer.decode(ids)
    return text.removeprefix(tokenizer.prefix).removesuffix(tokenizer.suffix)


def _shards(prepared: Prepared, split: str) -> Iterator[tuple[str, int, int]]:
    """The index of each shard, its first document and the one after its last."""
    first = 0
    for shard in prepared.manifest["splits"][split]["shards"]:
        yield shard["index"], first, first + shard["documents"]
        first += shard["documents"]


def _index(path: Path, places: np.ndarray) -> list[tuple[str, str | None]]:
    """File and label of some documents of a shard."""
    if not len(places):
        return []
    try:
        table = parquet.read_table(path).take(places)
    except OSError as error:
        raise DataError(f"{path}: {error}; restore it or run prepare again") from None
    labelled = "label" in table.column_names  # only where the recipe names a field for it
    labels = table.column("label").to_pylist() if labelled else [None] * len(places)
    return list(zip(table.column("file").to_pylist(), labels, strict=True))
