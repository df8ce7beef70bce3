"""Encoding tasks: a range of ranks of one split, from all parts of the spool to one shard.

Beside each shard lies an index of its documents: the file and record each came from, with the
label and id that the recipe names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as arrow

from .columns import binary, numbers
from .duplicates import Dropped
from .keys import SPLITS, mixed
from .progress import METER
from .recipe.data import DataConfig
from .sharding import DocumentShard, Origins
from .spool import Documents, Part
from .spooling import open_parts
from .tokenizers import Tokenizer, load_tokenizer

_ENCODED_AT_ONCE = 512  # documents
_FULL = 2**64


@dataclass(frozen=True)
class PartOrigin:
    """A part and where its documents come from."""

    path: Path
    file: str
    lines_before: int  # of the file before its byte range, to be added to record numbers
    weight: float  # how often each document occurs in training
    first_rank: int  # in source order
    bytes_per_split: Sequence[int]  # of text

    @property
    def text_bytes(self) -> list[float]:
        """The bytes of text that each split gets from the part."""
        train, *others = self.bytes_per_split
        return [train * self.weight, *others]


class Opened(NamedTuple):
    """The parts of the spool, the rows dropped of them by kind, and the tokenizer."""

    parts: list[Part]
    dropped: dict[str, Dropped]
    tokenizer: Tokenizer


@dataclass(frozen=True)
class EncodeJob:
    """Shard `number` of a split: the documents with ranks in [low, high]. `run` names the run, so
    that nothing that an earlier one opened is taken for its own."""

    run: str
    data: DataConfig
    scratch: Path
    duplicates: Path
    origins: Sequence[PartOrigin]
    split: int
    number: int
    low: int
    high: int

    @property
    def name(self) -> str:
        """The name of task and shard."""
        return f"{SPLITS[self.split]}-{self.number:05d}"

    def open(self) -> Opened:
        """What the task reads."""
        paths = tuple(origin.path for origin in self.origins)
        return _opened(self.run, paths, self.duplicates, self.scratch / "tokenizer")


def plan_shards(
    data: DataConfig,
    part_bytes: Sequence[Sequence[float]],
    first_ranks: Sequence[int],
    shard_bytes: float,
) -> list[tuple[int, int, int, int]]:
    """(split, number, low, high) of every shard, each of about `shard_bytes` of text.

    `part_bytes` are the bytes of text of each part per split, weights included. Shuffled
    documents have evenly spread ranks; those in source order are cut where a part begins.
    """  # fmt: skip
    found = []
    for split in range(len(SPLITS)):
        sizes = [sizes[split] for sizes in part_bytes]
        count = max(1, round(sum(sizes) / shard_bytes)) if sum(sizes) else 0
        if data.order == "shuffled":
            edges = [_FULL * number // count for number in range(count + 1)] if count else []
        else:
            edges = _part_edges(sizes, first_ranks, count)
        ranges = zip(edges, edges[1:], strict=False)
        found += [(split, n, low, high - 1) for n, (low, high) in enumerate(ranges)]
    return found


def _part_edges(sizes: Sequence[float], first_ranks: Sequence[int], count: int) -> list[int]:
    if not count:
        return []
    edges, gathered, total = [0], 0.0, sum(sizes)
    for size, rank in zip(sizes, first_ranks, strict=True):
        if gathered >= total * len(edges) / count:
            edges.append(rank)
        gathered += size
    return [*edges, _FULL]


def encode_task(job: EncodeJob) -> dict[str, Any]:
    """Write one shard and its index of documents; returns their records and counts."""
    counts: Counter[str] = Counter()
    documents, parts = _gather(job, counts)
    firsts = np.array([origin.lines_before for origin in job.origins], np.uint64)
    names = sorted({origin.file for origin in job.origins})
    places = {name: place for place, name in enumerate(names)}
    files = np.array([places[origin.file] for origin in job.origins], np.int32)
    origins = Origins(
        names,
        files[parts],
        documents.record + firsts[parts],
        documents.labels,
        documents.ids,
    )
    shard = DocumentShard(job.scratch / f"{job.name}.shard", job.open().tokenizer)
    for first in range(0, len(documents), _ENCODED_AT_ONCE):
        shard.add(documents.text.slice(first, _ENCODED_AT_ONCE).to_pylist())
    return {
        "split": SPLITS[job.split],
        "index": origins.write(job.scratch / f"{job.name}.parquet").as_json(),
        "counts": dict(counts),
        **shard.close(),
    }


def sample_texts(
    parts: Sequence[Part], duplicates: Path, megabytes: float, train_bytes: int
) -> Iterator[str]:
    """A random sample, about `megabytes`, of the `train_bytes` of the train split; the same one
    however files are named and cut, because the hashes of the texts decide."""
    share = min(1.0, megabytes * 1e6 / max(1, train_bytes))
    limit = np.uint64(min(int(share * _FULL), _FULL - 1))
    found: list[tuple[int, bytes]] = []
    exact, near = Dropped(duplicates, "exact"), Dropped(duplicates, "near")
    for part in parts:
        chosen = mixed(part.key1, "tokenizer sample")
        rows = np.flatnonzero((part.split == 0) & (chosen <= limit))
        rows = near.without(part.number, exact.without(part.number, rows))
        texts = part.take(rows).text.to_pylist()
        found += zip(chosen[rows].tolist(), texts, strict=True)
        part.forget()
    found.sort()
    for _, text in found:
        yield text.decode()


def _gather(job: EncodeJob, counts: Counter[str]) -> tuple[Documents, np.ndarray]:
    """The documents of a shard in their order, and the part each came from."""
    opened = job.open()
    pieces, numbers, weights = [], [], []
    for part, origin in zip(opened.parts, job.origins, strict=True):
        span = part.rows(job.split, job.low, job.high)
        rows = np.arange(span.start, span.stop)
        for kind, dropped in opened.dropped.items():
            left = dropped.without(part.number, rows)
            counts[f"dropped_{kind}_duplicate"] += len(rows) - len(left)
            rows = left
        if len(rows):
            pieces.append(part.take(rows))
            numbers.append(np.full(len(rows), part.number))
            weights.append(np.full(len(rows), origin.weight))
        part.forget()
    if not pieces:
        return _nothing(), np.empty(0, np.int64)
    together = _joined(pieces)
    METER.add(len(_text_bytes(together.text)), len(together))
    order = _order(job, together, np.concatenate(weights), counts)
    return _reordered(together, order), np.concatenate(numbers)[order]


def _order(
    job: EncodeJob, documents: Documents, weights: np.ndarray, counts: Counter[str]
) -> np.ndarray:
    """The rows of documents in their order in the shard. In training a document of weight w
    occurs floor(w) times, and once more by its hash."""
    rows = np.arange(len(documents))
    if job.split == 0 and (weights != 1.0).any():
        drawn = mixed(documents.keys[:, 0], "weight") / float(_FULL)
        times = np.floor(weights).astype(np.int64) + (drawn < weights % 1.0)
        counts["dropped_weight"] += int(np.sum(times == 0))
        counts["repeated_weight"] += int(np.sum(np.maximum(times - 1, 0)))
        rows = np.repeat(rows, times)
    rows = rows[np.argsort(documents.rank[rows], kind="stable")]
    return rows[np.argsort(_places(documents.rank[rows]), kind="stable")]


def _places(ranks: np.ndarray) -> np.ndarray:
    """Where documents of ascending ranks go. Equal ones have equal ranks: all but the first go
    behind any other of the shard, as a model learns little from a text that it has just read."""
    again = np.flatnonzero(ranks[1:] == ranks[:-1]) + 1
    if not len(again):
        return ranks
    first = np.searchsorted(ranks, ranks[again], "left")
    copy = (again - first).astype(np.uint64)
    places = ranks.copy()
    places[again] = ranks[mixed(ranks[again] + copy, "copy") % np.uint64(len(ranks))]
    return places


def _nothing() -> Documents:
    """No documents."""
    none = np.empty(0, np.uint64)
    empty = binary([])
    return Documents(empty, none.astype(np.uint8), none, np.empty((0, 2), np.uint64), none)


def _joined(pieces: Sequence[Documents]) -> Documents:
    def column(name: str) -> Any:
        found = [getattr(piece, name) for piece in pieces]
        if all(f is None for f in found):
            return None
        kind = arrow.string()
        return arrow.concat_arrays(
            [arrow.nulls(len(p), kind) if f is None else f
             for p, f in zip(pieces, found, strict=True)]
        )  # fmt: skip

    def vector(name: str) -> np.ndarray:
        return np.concatenate([getattr(piece, name) for piece in pieces])

    text = arrow.concat_arrays([piece.text for piece in pieces])
    columns = (vector(name) for name in ("split", "rank", "keys", "record"))
    return Documents(text, *columns, *(column(name) for name in ("labels", "ids")))


def _reordered(documents: Documents, order: np.ndarray) -> Documents:
    places = numbers(order)
    columns = (documents.labels, documents.ids)
    return Documents(
        documents.text.take(places),
        documents.split[order],
        documents.rank[order],
        documents.keys[order],
        documents.record[order],
        *(None if column is None else column.take(places) for column in columns),
    )


def _text_bytes(text: Any) -> np.ndarray:
    """All bytes of an Arrow array of texts, one after another."""
    _, offsets, data = text.buffers()
    if data is None or not len(text):
        return np.empty(0, np.uint8)
    edges = np.frombuffer(offsets, np.int32)[text.offset : text.offset + len(text) + 1]
    return np.frombuffer(data, np.uint8)[edges[0] : edges[-1]]


@lru_cache(maxsize=1)
def _opened(run: str, paths: tuple[Path, ...], duplicates: Path, tokenizer: Path) -> Opened:
    """What every task of a run reads, opened once by each process."""
    dropped = {kind: Dropped(duplicates, kind) for kind in ("exact", "near")}
    return Opened(open_parts(paths), dropped, load_tokenizer(tokenizer))
