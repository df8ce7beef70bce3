"""A source, and all rows of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from data_prep.recipe.sources import Source
from data_prep.sources import Rejects, plan_tasks, read_rows


def source(kind: str, path: Path | str | list[str], **keys: Any) -> Source:
    if kind != "text":
        keys.setdefault("text_field", "text")
    paths = path if isinstance(path, list) else str(path)
    return TypeAdapter(Source).validate_python({"kind": kind, "path": paths, **keys})


class Row(NamedTuple):
    text: str
    record: int
    label: str | None = None
    id: str | None = None


def read(of: Source, tolerate_damage: bool = False) -> tuple[list[Row], list[tuple[int, str]]]:
    """All rows and rejected records, numbered in their file."""
    rows: list[Row] = []
    bad: list[tuple[int, str]] = []
    lines: Counter[str] = Counter()
    for task in plan_tasks([of]):
        rejects, before = Rejects(), lines[task.path]
        for block in read_rows(task, of, rejects, tolerate_damage):
            none = [None] * len(block.texts)
            columns = block.texts, block.records.tolist(), block.labels or none, block.ids or none
            rows += [Row(t, n + before, *r) for t, n, *r in zip(*columns, strict=True)]
        bad += [(sample["record"] + before, sample["reason"]) for sample in rejects.samples]
        assert rejects.counts.keys() == {sample["reason"] for sample in rejects.samples}
        lines[task.path] += rejects.lines
    return rows, sorted(bad)


def texts(of: Source) -> list[tuple[str, int]]:
    rows, bad = read(of)
    assert not bad
    return [(row.text, row.record) for row in rows]
