"""What the tasks of a stage found, added up: counts, splits, rejected records, leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .claims import TaskFolder
from .clean import refuse_folded
from .errors import DataError
from .keys import SPLITS
from .leaks import SetLeaks, merged
from .recipe.data import DataConfig

_SAMPLES = 1000
_FEW_RECORDS = 100  # of so few, one bad record is no share to speak of


@dataclass(frozen=True)
class Findings:
    """Plain values for the manifest and the data card."""

    splits: dict[str, Any]
    counts: dict[str, dict[str, int]]  # records, rejected, dropped, changed
    sources: list[dict[str, Any]]  # of each source: records, rejected, documents
    leaks: dict[str, dict[str, int]]
    rejects: list[dict[str, Any]]  # where the first rejected records stand


def check_read(data: DataConfig, read: Sequence[dict[str, Any]]) -> None:
    """DataError when too many records are bad, folding lost too much, or a split is empty."""
    counts = _added(result["counts"] for result in read)
    rejected = _added(result["rejected"] for result in read)
    records = counts["records_read"] + rejected.total()
    allowed = max(data.max_bad_share * records, 1 if records < _FEW_RECORDS else 0)
    if rejected.total() > allowed:
        share = rejected.total() / records
        reasons = ", ".join(f"{name} {count:,}" for name, count in rejected.most_common())
        place = _samples(read)[0]
        first = f"the first at {place['file']}, record {place['record']}"
        hint = "mend the source, or raise data.max_bad_share; what was read is kept"
        raise DataError(
            f"{rejected.total():,} of {records:,} records ({share:.2%}) are bad: {reasons}; "
            f"{first}; expected at most {data.max_bad_share:.2%}; {hint}"
        )
    refuse_folded(counts, data.clean)
    _refuse_empty(counts, rejected, [result["documents"] for result in read])


def _samples(read: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where the first rejected records stand, by their number in the file and not in the byte
    range of a task."""
    return [
        sample | {"record": sample["record"] + before}
        for result, before in zip(read, lines_before(read), strict=True)
        for sample in result["samples"]
    ]


def lines_before(read: Sequence[dict[str, Any]]) -> list[int]:
    """Of each read task: the lines of its file before its byte range, which its own numbers of
    records lack."""
    found: list[int] = []
    lines: Counter[int] = Counter()
    for result in read:
        found.append(lines[result["file"]])
        lines[result["file"]] += result["lines"]
    return found


def _refuse_empty(
    counts: Counter[str], rejected: Counter[str], documents: Sequence[Sequence[int]]
) -> None:
    totals = [sum(column) for column in zip(*documents, strict=True)] or [0]
    if not sum(totals):
        reasons = ", ".join(f"{n} {c}" for n, c in sorted((counts + rejected).items()))
        hint = "check data.sources and data.clean"
        raise DataError(f"no document is left after cleaning ({reasons or 'no rows'}); {hint}")
    for name, total in zip(SPLITS[:2], totals, strict=False):
        if not total:
            hint = "give more documents, or change data.split"
            raise DataError(f"the {name} split is empty ({sum(totals)} documents in all); {hint}")


def gather_findings(
    data: DataConfig,
    read: Sequence[dict[str, Any]],
    shards: Sequence[dict[str, Any]],
    leaks: Path,
) -> Findings:
    """Add up the results of all tasks."""
    counts = _added([*(r["counts"] for r in read), *(s["counts"] for s in shards)])
    rejected = _added(result["rejected"] for result in read)
    samples = _samples(read)
    return Findings(
        splits=_splits(shards),
        counts=_sorted_out(counts, rejected),
        sources=[_source(data, number, read) for number in range(len(data.sources))],
        leaks=_leaks(data, read, leaks),
        rejects=samples[:_SAMPLES],
    )


def _splits(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    histograms = {name: np.zeros(256, np.int64) for name in SPLITS}
    for name in SPLITS:
        mine = [shard for shard in shards if shard["split"] == name]
        for shard in mine:
            histograms[name] += np.array(shard["histogram"])
        lengths = [shard["lengths"] for shard in mine]
        entries[name] = {
            "documents": sum(shard["shard"]["documents"] for shard in mine),
            "tokens": sum(shard["shard"]["tokens"] for shard in mine),
            "bytes": sum(shard["bytes"] for shard in mine),
            "characters": sum(shard["characters"] for shard in mine),
            "documents_by_log2_tokens": _column_sums(lengths),
            "shards": [shard["shard"] | {"index": shard["index"]["path"]} for shard in mine],
        }
    for name in SPLITS[1:]:
        bits = _unigram_bits(histograms["train"], histograms[name])
        entries[name]["unigram_bits_per_byte"] = bits
    return entries


def _column_sums(rows: Sequence[Sequence[int]]) -> list[int]:
    sums = np.zeros(max(map(len, rows), default=0), np.int64)
    for row in rows:
        sums[: len(row)] += np.array(row, np.int64)
    return sums.tolist()  # type: ignore[no-any-return]


def _unigram_bits(train: np.ndarray, split: np.ndarray) -> float | None:
    """Bits per byte of a split under the train split's add-one byte frequencies."""
    if not split.sum():
        return None
    bits = -np.log2((train + 1) / (train.sum() + len(train)))
    return float((split * bits).sum() / split.sum())


_READ = ("records_read", "cut", "characters_seen", "characters_folded", "repeated_weight")
_SHORT = {"too_short": "too_short", "too_long": "too_long"}


def _sorted_out(counts: Counter[str], rejected: Counter[str]) -> dict[str, dict[str, int]]:
    """Counts by what they say: records read and rejected, documents dropped and changed."""
    records = counts["records_read"] + rejected.total()
    dropped = {n.removeprefix("dropped_"): c for n, c in counts.items() if n.startswith("dropped_")}
    dropped |= {name: counts[name] for name in _SHORT}
    changed = {
        name: count
        for name, count in counts.items()
        if not name.startswith("dropped_") and name not in _READ and name not in _SHORT
    }
    folded = {n: counts[n] for n in ("characters_seen", "characters_folded") if counts[n]}
    more = {"cut": counts["cut"], "repeated": counts["repeated_weight"]}
    groups = {
        "records": {"read": records} | more | folded,
        "rejected": dict(rejected),
        "dropped": dropped,
        "changed": changed,
    }
    return {
        group: {name: count for name, count in sorted(found.items()) if count}
        for group, found in groups.items()
    }


def _source(data: DataConfig, number: int, read: Sequence[dict[str, Any]]) -> dict[str, Any]:
    source = data.sources[number]
    mine = [result for result in read if result["source"] == number]
    rejected = _added(result["rejected"] for result in mine)
    documents = sum(result["counts"].get("records_read", 0) for result in mine)
    return {
        "kind": source.kind,
        "path": source.path,
        "licence": source.licence,
        "origin": source.origin,
        "weight": source.weight,
        "records": documents + rejected.total(),
        "rejected": rejected.total(),
        "kept_before_duplicates": sum(sum(result["documents"]) for result in mine),
    }


def _leaks(data: DataConfig, read: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
    if not data.leaks.sets:
        return {}
    sizes = TaskFolder(folder).result("leaks") or {}
    parts = [{n: SetLeaks(**found) for n, found in result["leaks"].items()} for result in read]
    found = merged(parts)
    nothing = SetLeaks(0, [])
    return {
        name: size
        | {
            "examples_found": len(found.get(name, nothing).examples),
            "overlapping_documents": found.get(name, nothing).overlapping_documents,
            "removed": data.leaks.remove,
        }
        for name, size in sizes.items()
    }


def _added(counters: Any) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total
