"""The spool: cleaned documents between reading and encoding, in memory-mapped Arrow files.

A part holds some megabytes of text of one read task, sorted by split and rank. Ranks order the
documents of a split, so a shard is a range of ranks: a slice of every part, merged. Memory holds
one part or one shard, never the corpus.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow

from .columns import numbers, vector
from .manifest import put_in_place, sync

_NUMBERS = {"split": np.uint8, "rank": np.uint64, "key0": np.uint64, "key1": np.uint64,
            "record": np.uint64}  # fmt: skip
_OPENED_AT_ONCE = 64  # parts: each holds a file descriptor, of which a process may have few


@dataclass(frozen=True)
class Documents:
    """Texts (UTF-8) with their columns, all of one length."""

    text: Any  # arrow.BinaryArray
    split: np.ndarray  # uint8, place in SPLITS
    rank: np.ndarray  # uint64
    keys: np.ndarray  # (documents, 2) uint64
    record: np.ndarray  # uint64, number in the file, or in the byte range read
    labels: Any | None = None  # arrow.StringArray
    ids: Any | None = None

    def __len__(self) -> int:
        return len(self.split)


def sorted_order(split: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The order of a part's rows: by split, then by rank."""
    order = np.argsort(rank, kind="stable")
    return order[np.argsort(split[order], kind="stable")]


def write_part(path: Path, documents: Documents) -> None:
    """Write a part; its rows are in `sorted_order`."""
    keys = np.ascontiguousarray(documents.keys.T)
    vectors = [documents.split, documents.rank, keys[0], keys[1], documents.record]
    columns = dict(zip(_NUMBERS, map(numbers, vectors), strict=True))
    columns |= {"text": documents.text, "labels": documents.labels, "ids": documents.ids}
    batch = arrow.record_batch({name: c for name, c in columns.items() if c is not None})
    beside = path.with_name(path.name + ".tmp")
    with arrow.OSFile(str(beside), "wb") as stream:
        with arrow.ipc.new_file(stream, batch.schema) as writer:
            writer.write_batch(batch)
    sync(beside)
    put_in_place(beside, path)


class Part:
    """A part, memory-mapped while it is used. `number` is its place among all parts, in reading
    order; `opened`, shared by all of them, holds those that are mapped."""

    def __init__(self, path: Path, number: int, opened: dict[int, Part] | None = None) -> None:
        self.path, self.number = path, number
        self._opened = {} if opened is None else opened
        self._mapped: Any | None = None  # arrow.RecordBatch

    @property
    def _batch(self) -> Any:
        if self._mapped is None:
            while len(self._opened) >= _OPENED_AT_ONCE:
                next(iter(self._opened.values())).forget()
            with open(self.path, "rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._mapped = arrow.ipc.open_file(arrow.py_buffer(mapped)).get_batch(0)
            self._opened[self.number] = self
        return self._mapped

    def __len__(self) -> int:
        return self._batch.num_rows  # type: ignore[no-any-return]

    @property
    def split(self) -> np.ndarray:
        """The place in SPLITS of each row."""
        return vector(self._batch.column("split"))

    @property
    def rank(self) -> np.ndarray:
        """The rank of each row."""
        return vector(self._batch.column("rank"))

    @property
    def key0(self) -> np.ndarray:
        """The first half of each row's key."""
        return vector(self._batch.column("key0"))

    @property
    def key1(self) -> np.ndarray:
        """The other half."""
        return vector(self._batch.column("key1"))

    @property
    def record(self) -> np.ndarray:
        """The record each row came from."""
        return vector(self._batch.column("record"))

    def forget(self) -> None:
        """Unmap; what is wanted later is mapped again. The pages of all parts that a process ever
        touched would else be counted as its own, and each map takes a file descriptor."""
        self._mapped = None
        self._opened.pop(self.number, None)

    def text(self, row: int) -> bytes:
        """The text of one row."""
        return self._batch.column("text")[row].as_py()  # type: ignore[no-any-return]

    def rows(self, split: int, low: int, high: int) -> slice:
        """The rows of a split whose ranks are in [low, high]."""
        first, last = np.searchsorted(self.split, [split, split + 1]).tolist()
        ranks = self.rank[first:last]
        start = int(np.searchsorted(ranks, np.uint64(low), "left"))
        return slice(first + start, first + int(np.searchsorted(ranks, np.uint64(high), "right")))

    def take(self, rows: np.ndarray) -> Documents:
        """Some rows as documents."""
        batch = self._batch.take(numbers(rows))
        names = batch.schema.names
        keys = np.stack([self.key0[rows], self.key1[rows]], axis=1)
        columns = [batch.column(n) if n in names else None for n in ("labels", "ids")]
        text = batch.column("text")
        vectors = self.split[rows], self.rank[rows], keys, self.record[rows]
        return Documents(text, *vectors, *columns)
