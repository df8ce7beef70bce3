"""Tables: delimited text under a header line, and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..files import LONGEST_LINE, TooLong, read_lines
from ..recipe.sources import CsvSource, FieldSource, ParquetSource
from .rows import FieldCheck, Rejects, Rows, as_text, is_unicode

_ROWS_PER_BLOCK = 1024
_CHARACTERS_PER_BLOCK = 2**21


def read_csv(
    path: Path, source: CsvSource, rejects: Rejects, tolerate_damage: bool = False
) -> Iterator[Rows]:
    """The rows of a delimited file; a row's record is the number of the line it ends on."""
    numbered = _csv_rows(path, source, rejects, tolerate_damage)
    for block in blocks(numbered, source):
        yield select(path, source, block, rejects)


def blocks(
    rows: Iterable[tuple[int, dict[str, Any]]], source: FieldSource
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Numbered rows, some at a time: fewer where their texts are long."""
    block: list[tuple[int, dict[str, Any]]] = []
    size = 0
    for number, row in rows:
        block.append((number, row))
        size += sum(len(t) for f in source.text_fields if isinstance(t := row.get(f), str))
        if len(block) == _ROWS_PER_BLOCK or size >= _CHARACTERS_PER_BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _csv_rows(
    path: Path, source: CsvSource, rejects: Rejects, tolerate_damage: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_LINE)  # the default, 128 KiB, is less than a long document
    lines = _TextLines(path, rejects, tolerate_damage)
    quoting: Any = csv.QUOTE_MINIMAL if source.quoted else csv.QUOTE_NONE
    rows = csv.reader(lines, delimiter=source.delimiter, quoting=quoting, strict=True)
    header: list[str] | None = None
    while True:
        before = lines.number
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote without end takes the lines that follow with it: each of them is lost.
            rejects.add(path, before + 1, "bad_csv", str(error))
            rejects.counts["bad_csv"] += max(0, lines.number - before - 1)
            continue
        if header is None:
            header = row
            check = FieldCheck(path, source.fields)
            check.see(header)
            check.end()
        elif len(row) > len(header):
            detail = f"{len(row)} fields under a header of {len(header)}"
            rejects.add(path, lines.number, "bad_csv", detail)
        elif row:
            yield lines.number, dict(zip(header, row, strict=False))


class _TextLines:
    """The lines of a file as text, and the number of the last one given."""

    def __init__(self, path: Path, rejects: Rejects, tolerate_damage: bool) -> None:
        self.number = 0
        self._path, self._rejects, self._tolerate = path, rejects, tolerate_damage
        self._lines = self._read()

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def _read(self) -> Iterator[str]:
        for lines in read_lines(self._path, tolerate_damage=self._tolerate):
            if isinstance(lines, TooLong):
                self._rejects.add_too_long(self._path, lines)
                continue
            # Bytes that are no UTF-8 travel as surrogates, so that only their row is rejected.
            text = lines.data.decode("utf-8", "surrogateescape")
            for self.number, line in enumerate(text.split("\n")[: lines.total], lines.first):
                yield line + "\n"


def read_parquet(path: Path, source: ParquetSource, rejects: Rejects) -> Iterator[Rows]:
    """The rows of a Parquet file; a row's record is its number in the file."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as table:
            check = FieldCheck(path, source.fields)
            check.see(table.schema_arrow.names)
            check.end()
            columns = list(dict.fromkeys(source.fields))
            number = 1
            for batch in table.iter_batches(batch_size=_at_once(table.metadata), columns=columns):
                rows = batch.to_pylist()
                yield select(path, source, list(enumerate(rows, number)), rejects)
                number += len(rows)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({first})") from None


def _at_once(metadata: Any) -> int:
    """Rows of a Parquet file to hold at once, by their mean size."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups) / max(1, metadata.num_rows)
    return max(1, min(_ROWS_PER_BLOCK, int(_CHARACTERS_PER_BLOCK / max(1, size))))


def select(
    path: Path | str,
    source: FieldSource,
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    rejects: Rejects,
) -> Rows:
    """The fields of the recipe from numbered rows; rows without text are rejected."""
    texts: list[str] = []
    kept: list[tuple[int, Mapping[str, Any]]] = []
    for number, row in rows:
        parts = [row.get(field) for field in source.text_fields]
        problem = _problem(source.text_fields, parts) or _beside(source, row)
        if problem is not None:
            rejects.add(path, number, *problem)
            continue
        texts.append(source.join_with.join(filter(None, parts)))
        kept.append((number, row))
    label, name = source.label_field, source.id_field
    return Rows(
        texts,
        np.array([number for number, _ in kept], np.int64),
        [as_text(row.get(label)) for _, row in kept] if label else None,
        [as_text(row.get(name)) for _, row in kept] if name else None,
    )


def _problem(fields: Sequence[str], parts: Sequence[Any]) -> tuple[str, str] | None:
    """Reason and detail when the parts are no text, else None."""
    for field, part in zip(fields, parts, strict=True):
        if part is not None and not isinstance(part, str):
            return "not_text", f"{field!r} holds {type(part).__name__}, expected text"
        if part and not is_unicode(part):
            return _surrogates(part), f"in {field!r}"
    return None if any(parts) else ("no_text", "")


def _beside(source: FieldSource, row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Reason and detail when label or id cannot be written as UTF-8."""
    for field in (source.label_field, source.id_field):
        value = row.get(field) if field else None
        if isinstance(value, str) and not is_unicode(value):
            return _surrogates(value), f"in {field!r}"
    return None


def _surrogates(text: str) -> str:
    """The reason for a text that has no UTF-8: its bytes had none, or it has lone surrogates."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "not_unicode"
    return "not_utf8"
