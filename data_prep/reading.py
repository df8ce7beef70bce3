"""Reading tasks: records of one file, or a byte range of one, to cleaned documents in a sink.

Everything that looks at one document at a time happens here: cleaning, personal data, leaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from .clean import clean_texts
from .errors import DataError
from .leaks import LeakIndex, SetLeaks, merged
from .manifest import FileRecord
from .pii import scrub_texts
from .progress import METER
from .recipe.data import DataConfig
from .sources import ReadTask, Rejects, Rows, plan_tasks, read_rows


class Batch(NamedTuple):
    """Documents as UTF-8, each with its record number, and label and id where they are named."""

    raws: Sequence[bytes]
    records: np.ndarray
    labels: Sequence[str | None] | None
    ids: Sequence[str | None] | None


class Sink(Protocol):
    """Where the documents of one task go."""

    def add(self, batch: Batch) -> None:
        """Take a few hundred documents, in reading order."""

    def close(self) -> dict[str, Any]:
        """Finish; what it returns, plain values, becomes part of the task's result. It has
        `documents`, the number per split, and `parts`."""


@dataclass(frozen=True)
class ReadJob:
    """A task with what it needs to know: its number among all tasks, the folder of the phase,
    and the sink's class."""

    data: DataConfig
    folder: Path
    number: int
    task: ReadTask
    sink: Callable[[ReadJob], Sink]

    @property
    def name(self) -> str:
        """The task's name, which sorts in reading order."""
        return f"read-{self.number:06d}"


def read_task(job: ReadJob) -> dict[str, Any]:
    """Read one task into its sink; returns its counts, as plain values.

    DataError when the file is missing, damaged, or lacks a field that the recipe names.
    """
    cleaner, rejects, sink = _Cleaner(job), Rejects(), job.sink(job)
    source = job.data.sources[job.task.source]
    for rows in read_rows(job.task, source, rejects, job.data.allow_truncated):
        batch = cleaner.clean(rows)
        METER.add(documents=len(batch.raws))
        sink.add(batch)
    whole = job.task.start == 0 and Path(job.task.path).is_file()
    return {
        "path": job.task.path,
        "file": job.task.file,
        "source": job.task.source,
        "lines": rejects.lines,
        "input": FileRecord.of(job.task.path).as_json() if whole else None,
        "counts": dict(cleaner.counts),
        "rejected": dict(rejects.counts),
        "samples": sorted(rejects.samples, key=lambda sample: sample["record"]),
        "leaks": {name: asdict(found) for name, found in cleaner.leaked.items()},
        **sink.close(),
    }


def evaluation_texts(data: DataConfig) -> dict[str, list[bytes]]:
    """The examples of each evaluation set that is looked for, cleaned and scrubbed like the corpus
    but of any length. DataError when a set has none, or too many of its records are bad: nothing
    would be found of it, and that would look as if nothing had leaked."""
    cleaning = data.clean.model_copy(update={"min_characters": 1, "max_characters": 2**62})
    found: dict[str, list[bytes]] = {}
    for name, source in data.leaks.sets.items():
        texts, rejects = found.setdefault(name, []), Rejects()
        for task in plan_tasks([source]):
            for rows in read_rows(task, source, rejects, data.allow_truncated):
                cleaned = clean_texts(rows.texts, cleaning, Counter())
                scrubbed = scrub_texts(cleaned, data.personal.scrub, Counter())
                texts += [text.encode() for text in scrubbed if text is not None]
        bad = rejects.counts.total()
        if not texts or bad > data.max_bad_share * (bad + len(texts)):
            reasons = ", ".join(f"{n} {c:,}" for n, c in rejects.counts.items()) or "no records"
            what = f"evaluation set {name!r}: {len(texts):,} examples can be read, {bad:,} cannot"
            raise DataError(f"{what} ({reasons}); correct data.leaks.sets.{name}")
    return found


def first_texts(data: DataConfig, count: int) -> list[str]:
    """The first documents of the corpus, cleaned."""
    found: list[str] = []
    for task in plan_tasks(data.sources):
        rejects = Rejects()
        for rows in read_rows(task, data.sources[task.source], rejects, data.allow_truncated):
            found += filter(None, clean_texts(rows.texts, data.clean, Counter()))
            if len(found) >= count:
                return found[:count]
    return found


class _Cleaner:
    """Rows to the documents that are left of them, counting what is changed and dropped."""

    def __init__(self, job: ReadJob) -> None:
        self._data = job.data
        self.counts: Counter[str] = Counter()
        self.leaked: dict[str, SetLeaks] = {}
        index = job.folder.parent / "leaks" / "index.npz"
        self._leaks = LeakIndex.load(index) if job.data.leaks.sets else None

    def clean(self, rows: Rows) -> Batch:
        # A document that was cut gives several texts of one record.
        again = int(np.count_nonzero(rows.records[1:] == rows.records[:-1]))
        self.counts["records_read"] += len(rows.texts) - again
        self.counts["cut"] += again
        texts = clean_texts(rows.texts, self._data.clean, self.counts)
        if kinds := self._data.personal.scrub:
            texts = scrub_texts(texts, kinds, self.counts)
        if None in texts:
            kept = [text is not None for text in texts]
            raws = [text.encode() for text in texts if text is not None]
            batch = _select(Batch(raws, rows.records, rows.labels, rows.ids), kept, raws)
        else:
            raws = list(map(str.encode, texts))  # type: ignore[arg-type]
            batch = Batch(raws, rows.records, rows.labels, rows.ids)
        return batch if self._leaks is None else self._without_leaks(self._leaks, batch)

    def _without_leaks(self, index: LeakIndex, batch: Batch) -> Batch:
        overlaps, found = index.find(batch.raws)
        if not overlaps.any():
            return batch
        self.leaked = merged([self.leaked, found])
        if not self._data.leaks.remove:
            return batch
        self.counts["dropped_leak"] += int(overlaps.sum())
        kept = (~overlaps).tolist()
        return _select(batch, kept, list(compress(batch.raws, kept)))


def _select(batch: Batch, kept: list[bool], raws: list[bytes]) -> Batch:
    """The columns beside the raws, with only the rows kept."""
    labels, ids = (c if c is None else list(compress(c, kept)) for c in (batch.labels, batch.ids))
    return Batch(raws, batch.records[np.array(kept, bool)], labels, ids)
