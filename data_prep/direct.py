"""The short way from reading to shards, for documents that need not wait for the whole corpus.

Documents are encoded as they are read, a shard of each split at a time. Only the index of
documents waits: the number of a record is known when the byte ranges before its own have been
read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from .columns import numbers, strings, vector
from .keys import SPLITS, document_keys, split_numbers
from .manifest import FileRecord, write_atomic
from .reading import Batch, ReadJob
from .recipe.data import DataConfig
from .recipe.tokenizer import AnyTokenizerConfig
from .sharding import DocumentShard, Origins, write_index
from .tokenizers import Tokenizer, load_tokenizer


def goes_directly(data: DataConfig, tokenizer: AnyTokenizerConfig) -> bool:
    """Whether no document has to wait: nothing is permuted, dropped as a twin, repeated by
    weight, or sampled for a tokenizer."""
    twins = data.duplicates.exact or data.duplicates.near
    weighted = any(source.weight != 1.0 for source in data.sources)
    return data.order == "source" and tokenizer.kind == "bytes" and not twins and not weighted


class ShardSink:
    """Writes the documents of a task to shards, one of each split open at a time."""

    def __init__(self, job: ReadJob) -> None:
        self._job = job
        tokenizer = load_tokenizer(job.folder.parents[1] / "tokenizer")
        self._writers = [_SplitWriter(job, split, tokenizer) for split in SPLITS]

    def add(self, batch: Batch) -> None:
        """Take documents, each to the shard of its split."""
        if not batch.raws:
            return
        split = split_numbers(document_keys(batch.raws), self._job.data.split)
        for number, writer in enumerate(self._writers):
            mine = split == number
            if mine.all():
                writer.add(batch)
            elif mine.any():
                kept = mine.tolist()
                columns = (c if c is None else list(compress(c, kept)) for c in batch[2:])
                raws = list(compress(batch.raws, kept))
                writer.add(Batch(raws, batch.records[mine], *columns))

    def close(self) -> dict[str, Any]:
        """Close the shards; the task's one part lists them."""
        shards = [shard for writer in self._writers for shard in writer.close()]
        documents = [writer.documents for writer in self._writers]
        part = {"before": 0, "bytes": [0] * len(SPLITS), "shards": shards}
        return {"documents": documents, "parts": {self._job.name: part}}


class _SplitWriter:
    def __init__(self, job: ReadJob, split: str, tokenizer: Tokenizer) -> None:
        self._job, self._split = job, split
        self._scratch = job.folder.parents[1]
        self._tokenizer = tokenizer
        self._shard: DocumentShard | None = None
        self._closed: list[dict[str, Any]] = []
        self.documents = 0

    def add(self, batch: Batch) -> None:
        if self._shard is None:
            name = f"{self._split}-{self._job.number:06d}-{len(self._closed):05d}"
            self._shard = DocumentShard(self._scratch / f"{name}.shard", self._tokenizer)
            self._origins: list[Batch] = []
        self._shard.add(batch.raws)
        self._origins.append(batch._replace(raws=[]))
        self.documents += len(batch.raws)
        if self._shard.tokens >= self._job.data.shard_tokens:
            self._finish(self._shard)

    def close(self) -> list[dict[str, Any]]:
        if self._shard is not None:
            self._finish(self._shard)
        return self._closed

    def _finish(self, shard: DocumentShard) -> None:
        record = np.concatenate([batch.records for batch in self._origins]).astype(np.uint64)
        columns = (
            _column([b.labels for b in self._origins]),
            _column([b.ids for b in self._origins]),
        )
        origins = Origins([self._job.task.path], np.zeros(len(record), np.int32), record, *columns)
        origins.write(self._job.folder / shard.path.with_suffix(".parquet").name)
        entry = shard.close()
        self._closed.append({"split": self._split} | entry)
        self._shard = None


def _column(pieces: Sequence[Sequence[str | None] | None]) -> Any | None:
    values = [value for piece in pieces if piece is not None for value in piece]
    return strings(values) if values else None


@dataclass(frozen=True)
class IndexJob:
    """The indexes of the shards of one task, with what to add to their record numbers."""

    name: str
    source: Path
    target: Path
    indexes: Sequence[str]
    before: int


def plan_indexes(
    scratch: Path, folder: Path, parts: Mapping[str, dict[str, Any]], before: Sequence[int]
) -> list[IndexJob]:
    """The tasks that finish the indexes of all parts, by name. `before` are the lines of each
    part's file before its byte range."""
    jobs = []
    for (name, part), lines in zip(parts.items(), before, strict=True):
        shards = [Path(shard["shard"]["path"]) for shard in part["shards"]]
        indexes = [path.with_suffix(".parquet").name for path in shards]
        jobs.append(IndexJob(f"index-{name}", folder, scratch, indexes, lines))
    return jobs


def index_task(job: IndexJob) -> dict[str, Any]:
    """Write indexes where they stay."""
    records = [
        _place_index(job.source / name, job.target / name, job.before) for name in job.indexes
    ]
    return {"indexes": [record.as_json() for record in records]}


def _place_index(source: Path, target: Path, before: int) -> FileRecord:
    if not before:  # the head of a file: the numbers are right as they are
        write_atomic(target, source.read_bytes())
        return FileRecord.of(target, target.parent)
    with parquet.ParquetFile(source) as index:
        table = index.read()
    record = numbers(vector(table["record"].combine_chunks()) + np.uint64(before))
    table = table.set_column(table.schema.get_field_index("record"), "record", record)
    return write_index(table, target)
