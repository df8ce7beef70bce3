"""Which documents are dropped as duplicates: tasks over the spool that write lists of rows.

Exact duplicates share a key; a task takes a range of keys. Near duplicates agree in all rows of a
MinHash band; a task takes a range of the hashes of one band and compares the documents that meet
there by their n-grams. In both a document is dropped when an earlier one, in reading order, is
its twin. A task holds the hashes of its range and no text, so memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .manifest import put_in_place, sync, write_array
from .minhash import bands_for, jaccard
from .progress import METER
from .recipe.data import DuplicatesConfig
from .spool import Part
from .spooling import bands_path, open_parts

_ROWS_PER_TASK = 2**20  # hashes that a task sorts
_PLACE = np.dtype([("part", np.uint32), ("row", np.uint32)])
_ROW_BITS = np.uint64(32)
_COMPARED = 16  # documents of a band that others are compared with at most


@dataclass(frozen=True)
class DuplicateJob:
    """Range `number` of `ranges` of the keys, or of the hashes of one band."""

    config: DuplicatesConfig
    folder: Path  # of the drop lists
    parts: Sequence[Path]
    number: int
    ranges: int
    band: int | None = None

    @property
    def name(self) -> str:
        """The task's name."""
        kind = "exact" if self.band is None else f"near-{self.band:03d}"
        return f"{kind}-{self.number:05d}"


def plan_exact(
    config: DuplicatesConfig, folder: Path, parts: Sequence[Path], documents: int
) -> list[DuplicateJob]:
    """The tasks that find exact duplicates; near ones are compared only among what they leave."""
    if not config.exact:
        return []
    ranges = -(-documents // _ROWS_PER_TASK)
    return [DuplicateJob(config, folder, parts, n, ranges) for n in range(ranges)]


def plan_near(
    config: DuplicatesConfig, folder: Path, parts: Sequence[Path], documents: int
) -> list[DuplicateJob]:
    """The tasks that find near duplicates."""
    if not config.near:
        return []
    ranges = -(-documents // _ROWS_PER_TASK)
    bands, _ = bands_for(config.threshold, config.permutations)
    return [
        DuplicateJob(config, folder, parts, n, ranges, band)
        for band in range(bands)
        for n in range(ranges)
    ]


def find_duplicates(job: DuplicateJob) -> dict[str, Any]:
    """Write the rows that one task drops to `folder/NAME.npy`; returns how many."""
    parts = open_parts(job.parts)
    dropped = _exact(job, parts) if job.band is None else _near(job, parts)
    order = np.lexsort((dropped["row"], dropped["part"]))
    write_array(job.folder / f"{job.name}.npy", dropped[order])
    return {"dropped": len(dropped)}


def merge_dropped(folder: Path, kind: str, parts: int) -> dict[str, Any]:
    """The lists of a kind as one, `KIND.rows`: part and row in one number, ascending and distinct.
    Returns how many rows. There may be thousands of lists; every later task reads this one."""
    paths = sorted(folder.glob(f"{kind}-*.npy"))
    size = sum(len(_dropped(path)) for path in paths)
    blocks = max(1, -(-size // _ROWS_PER_TASK))  # of parts, so that memory holds a block
    edges = [parts * number // blocks for number in range(blocks + 1)]
    merged, target = 0, folder / f"{kind}.rows"
    beside = target.with_name(target.name + ".tmp")
    with open(beside, "wb", buffering=0) as stream:
        for low, high in zip(edges, edges[1:], strict=False):
            found = [np.empty(0, np.uint64), *(_numbers(path, low, high) for path in paths)]
            rows = np.unique(np.concatenate(found))
            stream.write(rows.tobytes())
            merged += len(rows)
    sync(beside)
    put_in_place(beside, target)
    return {"dropped": merged}


def _numbers(path: Path, low: int, high: int) -> np.ndarray:
    """What one list drops of the parts from `low` to before `high`."""
    rows = _dropped(path)
    first, last = np.searchsorted(rows["part"], [low, high])
    found = rows[first:last]
    return found["part"].astype(np.uint64) << _ROW_BITS | found["row"]


def _dropped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


class Dropped:
    """The rows of a kind dropped in each part, as `merge_dropped` wrote them; none before."""

    def __init__(self, folder: Path, kind: str) -> None:
        path = folder / f"{kind}.rows"
        filled = path.exists() and path.stat().st_size > 0
        self._rows = np.memmap(path, np.uint64, "r") if filled else np.empty(0, np.uint64)

    def rows(self, part: int, span: slice = slice(0, None)) -> np.ndarray:
        """(rows,) of a part, within a span of its rows: ascending and distinct."""
        begin = part << int(_ROW_BITS)
        stop = (part + 1) << int(_ROW_BITS) if span.stop is None else begin + span.stop
        edges = np.array([begin + span.start, stop], np.uint64)
        first, last = np.searchsorted(self._rows, edges)
        return (self._rows[first:last] - np.uint64(begin)).astype(np.int64)

    def without(self, part: int, rows: np.ndarray) -> np.ndarray:
        """The rows of a part, ascending and distinct, that are not dropped."""
        if not len(rows):
            return rows
        dropped = self.rows(part, slice(int(rows[0]), int(rows[-1]) + 1))
        return np.setdiff1d(rows, dropped, assume_unique=True) if len(dropped) else rows


_ENTRY = np.dtype([*_PLACE.descr, ("hash", np.uint64), ("more", np.uint64), ("record", np.uint64)])


def _exact(job: DuplicateJob, parts: Sequence[Part]) -> np.ndarray:
    entries = np.concatenate(
        [
            _entries(part, rows, part.key0[rows], part.key1[rows])
            for part, rows in _in_range(job, parts, lambda part: part.key0)
        ]
    )
    entries = entries[np.lexsort((entries["record"], entries["part"], entries["more"],
                                  entries["hash"]))]  # fmt: skip
    again = (entries["hash"][1:] == entries["hash"][:-1]) & (
        entries["more"][1:] == entries["more"][:-1]
    )
    return _places(entries[1:][again])


def _near(job: DuplicateJob, parts: Sequence[Part]) -> np.ndarray:
    exact = Dropped(job.folder, "exact")

    def hashes(part: Part) -> np.ndarray:
        bands = np.load(bands_path(part.path), mmap_mode="r", allow_pickle=False)
        found = bands[:, job.band].copy()
        found[exact.rows(part.number)] = 0
        return found

    found = []
    for part, rows in _in_range(job, parts, hashes):
        of_rows = hashes(part)[rows]
        found.append(_entries(part, rows[of_rows != 0], of_rows[of_rows != 0]))
    entries = np.concatenate(found)
    entries = entries[np.lexsort((entries["record"], entries["part"], entries["hash"]))]
    begins = np.flatnonzero(entries["hash"][1:] != entries["hash"][:-1]) + 1
    edges = [0, *begins.tolist(), len(entries)]
    dropped = [np.empty(0, _PLACE)]
    for first, last in zip(edges, edges[1:], strict=False):
        if last - first > 1:
            dropped.append(_places(_twins(entries[first:last], parts, job.config)))
    return np.concatenate(dropped)


def _twins(group: np.ndarray, parts: Sequence[Part], config: DuplicatesConfig) -> np.ndarray:
    """The entries of a band's group that are near duplicates of an earlier one."""
    leaders: list[bytes] = []
    dropped = []
    for place, entry in enumerate(group):
        text = parts[entry["part"]].text(int(entry["row"]))
        if any(jaccard(text, leader, config.ngram) >= config.threshold for leader in leaders):
            dropped.append(place)
        elif len(leaders) < _COMPARED:
            leaders.append(text)
    return group[dropped]


def _in_range(
    job: DuplicateJob, parts: Sequence[Part], hashes: Any
) -> Iterator[tuple[Part, np.ndarray]]:
    """Each part with its rows whose hash lies in the task's range."""
    for part in parts:
        if job.ranges == 1:
            rows = np.arange(len(part))
        else:
            high = hashes(part) >> np.uint64(32)
            rows = np.flatnonzero((high * np.uint64(job.ranges)) >> np.uint64(32) == job.number)
        METER.add(part.path.stat().st_size // job.ranges, len(rows))
        yield part, rows
        part.forget()


def _entries(
    part: Part, rows: np.ndarray, hashes: np.ndarray, more: np.ndarray | None = None
) -> np.ndarray:
    entries = np.zeros(len(rows), _ENTRY)
    entries["part"], entries["row"], entries["hash"] = part.number, rows, hashes
    entries["record"] = part.record[rows]
    if more is not None:
        entries["more"] = more
    return entries


def _places(entries: np.ndarray) -> np.ndarray:
    places = np.empty(len(entries), _PLACE)
    places["part"], places["row"] = entries["part"], entries["row"]
    return places
