"""The sink that fills the spool, for documents that wait for the whole corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .columns import binary, slices, strings
from .keys import SPLITS, document_keys, mixed, normalised, split_numbers
from .manifest import write_array
from .minhash import band_hashes, bands_for, signatures, wordless
from .reading import Batch, ReadJob
from .recipe.data import DataConfig
from .spool import Documents, Part, sorted_order, write_part

PART_BYTES = 2**25  # of text
_SIGNED_AT_ONCE = 1024  # documents
_SIGNED_BYTES = 2**22  # what their words take is many times as large


def part_files(folder: Path, results: Sequence[dict[str, Any]]) -> list[Path]:
    """The parts of finished read tasks, in reading order."""
    return [folder / f"{name}.arrow" for result in results for name in result["parts"]]


def open_parts(paths: Sequence[Path]) -> list[Part]:
    """All parts, numbered in reading order."""
    opened: dict[int, Part] = {}
    return [Part(path, number, opened) for number, path in enumerate(paths)]


def bands_path(part: Path) -> Path:
    """Where the band hashes of a part lie, row for row."""
    return part.with_suffix(".bands.npy")


def first_rank(task: int, documents: int) -> int:
    """The rank of a document in source order: after all of earlier tasks, and after those before
    it in its own."""
    return (task << 40) + documents


class SpoolSink:
    """Collects the documents of a task until they fill a part."""

    def __init__(self, job: ReadJob) -> None:
        self._job, self._data = job, job.data
        # Of each part: documents of the task before it, and bytes of text per split.
        self._parts: dict[str, dict[str, Any]] = {}
        self._documents = np.zeros(len(SPLITS), np.int64)
        self._begin()

    def _begin(self) -> None:
        self._raws: list[bytes] = []
        self._records: list[np.ndarray] = []
        self._labels: list[str | None] = []
        self._ids: list[str | None] = []
        self._size = 0

    def add(self, batch: Batch) -> None:
        """Take documents; a part is written when it is full."""
        sizes = list(map(len, batch.raws))
        for piece in slices(sizes, len(sizes), PART_BYTES):
            self._raws += batch.raws[piece]
            self._records.append(batch.records[piece])
            self._labels += (batch.labels or [])[piece]
            self._ids += (batch.ids or [])[piece]
            self._size += sum(sizes[piece])
            if self._size >= PART_BYTES:
                self._flush()

    def close(self) -> dict[str, Any]:
        """Write the last part."""
        self._flush()
        return {"documents": self._documents.tolist(), "parts": self._parts}

    def _flush(self) -> None:
        if not self._raws:
            return
        name = f"{self._job.name}-{len(self._parts):05d}"
        path = self._job.folder / f"{name}.arrow"
        twins = self._data.duplicates
        keys = document_keys(list(map(normalised, self._raws)) if twins.exact else self._raws)
        split = split_numbers(keys, self._data.split)
        rank = self._ranks(keys)
        order = sorted_order(split, rank)
        places = order.tolist()
        raws = [self._raws[place] for place in places]
        if twins.near:
            _write_bands(bands_path(path), raws, self._data)
        columns = (
            strings([c[place] for place in places]) if c else None
            for c in (self._labels, self._ids)
        )  # fmt: skip
        record = np.concatenate(self._records)[order].astype(np.uint64)
        numbers = split[order], rank[order], keys[order], record
        write_part(path, Documents(binary(raws), *numbers, *columns))
        lengths = np.fromiter(map(len, self._raws), np.int64, len(raws))
        sizes = np.bincount(split, weights=lengths, minlength=len(SPLITS)).astype(int)
        before = int(self._documents.sum())
        self._parts[name] = {"before": before, "bytes": sizes.tolist()}
        self._documents += np.bincount(split, minlength=len(SPLITS))
        self._begin()

    def _ranks(self, keys: np.ndarray) -> np.ndarray:
        if self._data.order == "shuffled":
            return mixed(keys[:, 0], f"order/{self._data.seed}")
        first = first_rank(self._job.number, int(self._documents.sum()))
        return np.uint64(first) + np.arange(len(keys), dtype=np.uint64)


def _write_bands(path: Path, raws: Sequence[bytes], data: DataConfig) -> None:
    """The band hashes of a part's documents, (documents, bands); 0 where there are no words."""
    near = data.duplicates
    shape = bands_for(near.threshold, near.permutations)
    found = []
    for piece in slices(list(map(len, raws)), _SIGNED_AT_ONCE, _SIGNED_BYTES):
        signed = signatures(raws[piece], near.ngram, near.permutations)
        found.append(np.where(wordless(signed)[:, None], 0, band_hashes(signed, *shape)))
    write_array(path, np.concatenate(found))
