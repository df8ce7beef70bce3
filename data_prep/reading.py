"""Reading tasks: records of one file, or a byte range of one, to parts of the spool.

Everything that looks at one document at a time happens here: cleaning, personal data, leaks, and
the hashes that later find its twins.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow

from .clean import clean_texts
from .keys import SPLITS, document_keys, mixed, normalised, split_numbers
from .leaks import LeakIndex, SetLeaks, merged
from .manifest import FileRecord
from .minhash import band_hashes, bands_for, signatures, wordless
from .pii import scrub
from .progress import METER
from .recipe.data import DataConfig
from .sources import ReadTask, Rejects, Rows, plan_tasks, read_rows
from .spool import PART_BYTES, Documents, Part, binary, write_part

_SIGNED_AT_ONCE = 1024  # documents


@dataclass(frozen=True)
class ReadJob:
    """A task with what it needs to know: its number among all tasks, and where parts go."""

    data: DataConfig
    folder: Path
    number: int
    task: ReadTask

    @property
    def name(self) -> str:
        """The task's name, which sorts in reading order."""
        return f"read-{self.number:06d}"


def read_task(job: ReadJob) -> dict[str, Any]:
    """Read one task into parts; returns its counts, as plain values.

    DataError when the file is missing, damaged, or lacks a field that the recipe names.
    """
    reader = _Reader(job)
    source = job.data.sources[job.task.source]
    for rows in read_rows(job.task, source, reader.rejects, job.data.allow_truncated):
        reader.add(rows)
    reader.flush()
    return reader.result()


def first_rank(task: int, documents: int) -> int:
    """The rank of a document in source order: after all of earlier tasks, and after those before
    it in its own."""
    return (task << 40) + documents


def evaluation_texts(data: DataConfig) -> dict[str, list[bytes]]:
    """The examples of each evaluation set that is looked for, cleaned like the corpus."""
    found: dict[str, list[bytes]] = {}
    for name, source in data.leaks.sets.items():
        texts = found.setdefault(name, [])
        for task in plan_tasks([source]):
            for rows in read_rows(task, source, Rejects(), data.allow_truncated):
                cleaned = clean_texts(rows.texts, data.clean, Counter())
                texts += [text.encode() for text in cleaned if text is not None]
    return found


def part_files(folder: Path, results: Sequence[dict[str, Any]]) -> list[Path]:
    """The parts of finished read tasks, in reading order."""
    return [folder / name for result in results for name in result["parts"]]


def bands_path(part: Path) -> Path:
    """Where the band hashes of a part lie, row for row."""
    return part.with_suffix(".bands.npy")


class _Reader:
    """Collects documents until they fill a part."""

    def __init__(self, job: ReadJob) -> None:
        self._job, self._data = job, job.data
        self.rejects = Rejects()
        self._counts: Counter[str] = Counter()
        # Of each part: documents of the task before it, then bytes of text per split.
        self._parts: dict[str, list[int]] = {}
        self._documents = [0] * len(SPLITS)
        self._before = 0
        leaks = job.folder.parent / "leaks" / "index.npz"
        self._leaks = LeakIndex.load(leaks) if self._data.leaks.sets else None
        self._leaked: dict[str, SetLeaks] = {}
        self._begin()

    def _begin(self) -> None:
        self._raws: list[bytes] = []
        self._records: list[int] = []
        self._labels: list[str | None] = []
        self._ids: list[str | None] = []
        self._size = 0

    def add(self, rows: Rows) -> None:
        """Clean a block of rows and keep what is left."""
        self._counts["documents_read"] += len(rows.texts)
        texts = clean_texts(rows.texts, self._data.clean, self._counts)
        if kinds := self._data.personal.scrub:
            texts = [t and scrub(t, tuple(kinds), self._counts) for t in texts]
        raws = [text.encode() for text in texts if text is not None]
        kept = [text is not None for text in texts]
        rows = rows if all(kept) else _select(rows, kept)
        if self._leaks is not None:
            raws, rows = self._without_leaks(raws, rows)
        self._raws += raws
        self._records += rows.records
        self._labels += rows.labels or []
        self._ids += rows.ids or []
        self._size += sum(map(len, raws))
        METER.add(documents=len(raws))
        if self._size >= PART_BYTES:
            self.flush()

    def _without_leaks(self, raws: list[bytes], rows: Rows) -> tuple[list[bytes], Rows]:
        assert self._leaks is not None
        overlaps, found = self._leaks.find(raws)
        if not overlaps.any():
            return raws, rows
        self._leaked = merged([self._leaked, found])
        if not self._data.leaks.remove:
            return raws, rows
        self._counts["dropped_leak"] += int(overlaps.sum())
        kept = (~overlaps).tolist()
        return list(compress(raws, kept)), _select(rows, kept)

    def flush(self) -> None:
        """Write the documents gathered as a part."""
        if not self._raws:
            return
        data, raws = self._data, self._raws
        hashed = map(normalised, raws) if data.duplicates.exact else raws
        keys = document_keys(list(hashed))
        split = split_numbers(keys, data.split)
        path = self._job.folder / f"{self._job.name}-{len(self._parts):05d}.arrow"
        documents = Documents(
            binary(raws),
            split,
            self._ranks(keys),
            keys,
            np.array(self._records, np.uint64),
            arrow.array(self._labels, arrow.string()) if self._labels else None,
            arrow.array(self._ids, arrow.string()) if self._ids else None,
        )
        order = write_part(path, documents)
        if data.duplicates.near:
            _write_bands(bands_path(path), raws, order, data)
        lengths = np.fromiter(map(len, raws), np.int64, len(raws))
        sizes = np.bincount(split, weights=lengths, minlength=len(SPLITS))
        self._parts[path.name] = [self._before, *sizes.astype(int).tolist()]
        self._before += len(raws)
        self._documents = (self._documents + np.bincount(split, minlength=len(SPLITS))).tolist()
        self._begin()

    def _ranks(self, keys: np.ndarray) -> np.ndarray:
        if self._data.order == "shuffled":
            return mixed(keys[:, 0], f"order/{self._data.seed}")
        first = first_rank(self._job.number, self._before)
        return np.uint64(first) + np.arange(len(keys), dtype=np.uint64)

    def result(self) -> dict[str, Any]:
        """What the task found, as plain values."""
        task = self._job.task
        path = Path(task.path)
        whole = task.start == 0 and path.is_file()
        return {
            "path": task.path,
            "file": task.file,
            "source": task.source,
            "lines": self.rejects.lines,
            "input": asdict(FileRecord.of(path)) if whole else None,
            "counts": dict(self._counts),
            "rejected": dict(self.rejects.counts),
            "samples": self.rejects.samples,
            "documents": self._documents,
            "parts": self._parts,
            "leaks": {name: asdict(found) for name, found in self._leaked.items()},
        }


def _select(rows: Rows, kept: list[bool]) -> Rows:
    columns = [c if c is None else list(compress(c, kept)) for c in rows]
    return Rows(*columns)  # type: ignore[arg-type]


def _write_bands(path: Path, raws: list[bytes], order: np.ndarray, data: DataConfig) -> None:
    """The band hashes of a part's documents, (documents, bands); 0 where there are no words."""
    near = data.duplicates
    shape = bands_for(near.threshold, near.permutations)
    found = []
    for first in range(0, len(raws), _SIGNED_AT_ONCE):
        signed = signatures(raws[first : first + _SIGNED_AT_ONCE], near.ngram, near.permutations)
        found.append(np.where(wordless(signed)[:, None], 0, band_hashes(signed, *shape)))
    beside = path.with_suffix(".tmp")
    with open(beside, "wb") as stream:
        np.save(stream, np.concatenate(found)[order])
    os.replace(beside, path)


def open_parts(paths: Sequence[Path]) -> list[Part]:
    """All parts, memory-mapped, numbered in reading order."""
    return [Part(path, number) for number, path in enumerate(paths)]
