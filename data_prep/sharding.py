"""Documents to one shard, and the index of where each came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet

from .columns import numbers, strings
from .manifest import FileRecord, put_in_place, sync
from .shards import ShardWriter
from .tokenizers import Tokenizer

_COUNTED_BYTES = 2**18  # of each shard, for the byte frequencies


@dataclass(frozen=True)
class Origins:
    """Where each document of a shard came from; every column has one entry a document."""

    files: Sequence[str]  # the names that `file` counts in
    file: np.ndarray
    record: np.ndarray  # number in the file, from 1
    labels: Any | None = None  # arrow.StringArray
    ids: Any | None = None

    def write(self, path: Path) -> FileRecord:
        """Write the index as Parquet; its record is relative to its folder."""
        names = strings(self.files)
        file = arrow.DictionaryArray.from_arrays(numbers(self.file.astype(np.int32)), names)
        columns = {"file": file, "record": numbers(self.record.astype(np.uint64))}
        columns |= {"label": self.labels} if self.labels is not None else {}
        columns |= {"id": self.ids} if self.ids is not None else {}
        return write_index(arrow.table(columns), path)


def write_index(table: Any, path: Path) -> FileRecord:
    """Write an Arrow table of origins as Parquet; its record is relative to its folder."""
    encoding = {"record": "DELTA_BINARY_PACKED"}
    repeated = [name for name in ("file", "label") if name in table.column_names]
    beside = path.with_name(path.name + ".tmp")
    parquet.write_table(
        table, beside, compression="zstd", use_dictionary=repeated, column_encoding=encoding
    )
    sync(beside)
    put_in_place(beside, path)
    return FileRecord.of(path, path.parent)


class DocumentShard:
    """Encodes documents into one shard, and counts what the manifest says of them."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self.path = path
        self.tokens = 0
        self._tokenizer = tokenizer
        self._writer = ShardWriter(path, tokenizer)
        self._text_bytes = self._continued = 0
        self._counted = [np.empty(0, np.int8)]
        self._lengths = [np.empty(0, np.int64)]

    def add(self, raws: Sequence[bytes]) -> None:
        """Append UTF-8 documents, best a few hundred at a time, so that they stay in cache."""
        ids, lengths = self._tokenizer.encode_utf8(raws)
        self._writer.add(ids, lengths)
        self._lengths.append(lengths)
        self.tokens += len(ids)
        text = b"".join(raws)
        if self._text_bytes < _COUNTED_BYTES:
            self._counted.append(np.frombuffer(text, np.int8))
        self._text_bytes += len(text)
        if not text.isascii():
            # Of the bytes of UTF-8, these continue a character; every other byte begins one.
            self._continued += int(np.count_nonzero(np.frombuffer(text, np.int8) < -64))

    def close(self) -> dict[str, Any]:
        """Put the shard in place; returns its record and counts, as plain values."""
        sample = np.concatenate(self._counted)[:_COUNTED_BYTES].view(np.uint8)
        return {
            "shard": self._writer.close(),
            "bytes": self._text_bytes,
            "characters": self._text_bytes - self._continued,
            "histogram": np.bincount(sample, minlength=256).tolist(),
            "lengths": _length_histogram(np.concatenate(self._lengths)),
        }


def _length_histogram(lengths: np.ndarray) -> list[int]:
    """How many documents have 2^i to 2^(i+1) - 1 tokens, for each i; those of none count as 1."""
    logarithms = np.log2(np.maximum(lengths, 1)).astype(np.int64)
    return np.bincount(logarithms).tolist()  # type: ignore[no-any-return]
