"""The documents of a prepared folder, read back for tests."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as parquet

from data_prep.shards import Prepared


class Document(NamedTuple):
    """A document as it arrived: where it lies, where it came from, its text without framing."""

    split: str
    file: str
    record: int
    label: str | None
    id: str | None
    text: str


def documents(folder: Path | str) -> list[Document]:
    """All documents: by split, then in the order of the stream."""
    return list(chain.from_iterable(_of_split(Prepared.open(folder), n) for n in _SPLITS))


_SPLITS = ("train", "validation", "test")


def _of_split(prepared: Prepared, name: str) -> Iterator[Document]:
    split, tokenizer = prepared.split(name), prepared.tokenizer()
    shards = prepared.manifest["splits"][name]["shards"]
    rows: list[dict[str, Any]] = []
    for shard in shards:
        rows += parquet.read_table(prepared.folder / shard["index"]).to_pylist()
    ids, ends = split.read(0, split.tokens), split.document_ends.tolist()
    for row, start, stop in zip(rows, [0, *ends], ends, strict=False):
        text = tokenizer.decode(ids[start:stop])
        text = text.removeprefix(tokenizer.prefix).removesuffix(tokenizer.suffix)
        origin = row["file"], row["record"], row.get("label"), row.get("id")
        yield Document(name, *origin, text)
    assert len(rows) == len(ends) == split.documents
