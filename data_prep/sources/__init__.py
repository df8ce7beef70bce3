"""Documents from files: JSON lines, CSV, plain text, Parquet and datasets, streamed in blocks.

A source is cut into tasks that can be read on their own, by any process, in any order. Bad
records are counted with their reason and place and never stop a task; a file that is missing,
damaged or without the fields of the recipe does.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from ..files import PACKED
from ..recipe.sources import (
    CsvSource,
    HubSource,
    JsonlSource,
    ParquetSource,
    Source,
    TextSource,
)
from .hub import local_files, read_dataset
from .jsonl import read_jsonl
from .rows import Rejects, Rows, is_unicode
from .tables import read_csv, read_parquet
from .text import read_plain

__all__ = ["ReadTask", "Rejects", "Rows", "plan_tasks", "read_rows", "source_files"]

TASK_BYTES = 2**26  # about how much of a file that can be cut is one task


class ReadTask(NamedTuple):
    """A file, or a byte range of one, of a source. `file` counts the files of all sources."""

    source: int
    file: int
    path: str
    start: int = 0
    stop: int | None = None

    @property
    def size(self) -> int:
        """Bytes to read; 0 where that is not known."""
        if self.stop is not None:
            return self.stop - self.start
        return Path(self.path).stat().st_size if Path(self.path).is_file() else 0


def source_files(source: Source) -> list[Path]:
    """The files of a source in sorted order; DataError when there is none."""
    if isinstance(source, HubSource):
        return local_files(source)
    patterns = [source.path] if isinstance(source.path, str) else source.path
    found: set[Path] = set()
    for pattern in patterns:
        named = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
        matches = [Path(match) for match in named]
        files = [path for path in matches if path.is_file()]
        if not files:
            raise _nothing_at(pattern, matches)
        found.update(files)
    for path in found:
        if not is_unicode(str(path)):  # no manifest could name it
            what = f"{str(path)!r}: the name of this file is not UTF-8"
            raise DataError(f"{what}; rename it, or leave it out of data.sources")
    return sorted(found)


def plan_tasks(sources: Sequence[Source]) -> list[ReadTask]:
    """The tasks that together read every file once, in the order of the documents."""
    tasks: list[ReadTask] = []
    number = 0
    for index, source in enumerate(sources):
        if isinstance(source, HubSource):
            tasks.append(ReadTask(index, number, source.path))
            number += 1
            continue
        for path in source_files(source):
            tasks += _cut(ReadTask(index, number, str(path)), source)
            number += 1
    return tasks


def read_rows(
    task: ReadTask, source: Source, rejects: Rejects, tolerate_damage: bool = False
) -> Iterator[Rows]:
    """The rows of a task, block by block; `rejects` gains the records that are skipped.

    DataError when the file is missing, damaged, or lacks a field that the recipe names.
    """
    path, span = Path(task.path), (task.start, task.stop)
    if isinstance(source, JsonlSource):
        return read_jsonl(path, source, rejects, span, tolerate_damage)
    if isinstance(source, TextSource):
        return read_plain(path, source, rejects, span, tolerate_damage)
    if isinstance(source, CsvSource):
        return read_csv(path, source, rejects, tolerate_damage)
    if isinstance(source, ParquetSource):
        return read_parquet(path, source, rejects)
    return read_dataset(source, rejects)


def _cut(whole: ReadTask, source: Source) -> list[ReadTask]:
    """Byte ranges where records are lines; packed files, tables and paragraphs stay whole."""
    lines = isinstance(source, JsonlSource) or (
        isinstance(source, TextSource) and source.document == "line"
    )
    path = Path(whole.path)
    size = path.stat().st_size
    if not lines or path.suffix in PACKED or size <= TASK_BYTES:
        return [whole]
    count = -(-size // TASK_BYTES)
    edges = [size * number // count for number in range(count + 1)]
    return [
        whole._replace(start=start, stop=stop)
        for start, stop in zip(edges, edges[1:], strict=False)
    ]


def _nothing_at(pattern: str, matches: list[Path]) -> DataError:
    if matches:
        hint = f"name the files in it, such as {matches[0]}/*"
        return DataError(f"{matches[0]} is a folder, expected a file or a glob of files; {hint}")
    hint = "correct data.sources or put the file there"
    return DataError(f"no file at {pattern} (seen from {Path.cwd()}): {hint}")
