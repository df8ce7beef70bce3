"""Documents from files: JSON lines, CSV, plain text and Parquet, streamed one at a time.

Whatever is wrong with a file is reported with its name and line. A single row without text
(null, empty or absent field) is counted and skipped, for real corpora have them; a field that
no row has is a mistake in the recipe and stops the stage.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from .errors import DataError
from .recipe.data import CsvSource, JsonlSource, ParquetSource, Source, TextSource

Counts = Counter[str]
_DAMAGE = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
_ROWS_TO_MEET_FIELD = 1000  # rows after which a text field that none of them had is an error


class Document(NamedTuple):
    """A text, the file it came from, and its 1-based line, row or paragraph there."""

    text: str
    source: str
    record: int


def source_files(source: Source) -> list[Path]:
    """The files of a source in sorted order; DataError when there is none."""
    found = sorted(p for p in map(Path, glob.glob(source.path, recursive=True)) if p.is_file())
    if not found:
        hint = "correct data.sources or put the file there"
        raise DataError(f"no file at {source.path} (seen from {Path.cwd()}): {hint}")
    return found


def read_documents(source: Source, counts: Counts | None = None) -> Iterator[Document]:
    """The documents of every file of `source`, in file order.

    `counts` gains `rows`, and `no_text` or `not_unicode` for rows skipped. DataError names the
    file and line when one is missing, damaged, or not what the recipe says.
    """
    counts = Counter() if counts is None else counts
    for path in source_files(source):
        for record, text in _rows(path, source):
            counts["rows"] += 1
            if not text:
                counts["no_text"] += 1
            elif not _is_unicode(text):
                counts["not_unicode"] += 1
            else:
                yield Document(text, str(path), record)


def _rows(path: Path, source: Source) -> Iterator[tuple[int, str | None]]:
    if isinstance(source, JsonlSource):
        return _jsonl(path, source.text_field)
    if isinstance(source, CsvSource):
        return _csv(path, source)
    if isinstance(source, ParquetSource):
        return _parquet(path, source.text_field)
    return _text(path, source)


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON escapes can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return lzma.open(path, "rb") if path.suffix == ".xz" else open(path, "rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, decoded; a byte order mark is dropped."""
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        what = f"byte {error.object[error.start]:#04x} is not UTF-8"
        raise DataError(f"{path}, line {number}: {what}; convert the file to UTF-8") from None
    except _DAMAGE as error:
        what = f"damaged or cut short after line {number} ({error})"
        raise DataError(f"{path}: {what}; fetch or pack it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _jsonl(path: Path, field: str) -> Iterator[tuple[int, str | None]]:
    met, fields, number = False, set[str](), 0
    for number, line in _lines(path):
        if not line.strip():
            continue
        row = _json_object(path, number, line)
        met = met or field in row
        if not met:
            fields.update(row)
            if number >= _ROWS_TO_MEET_FIELD:
                break
        value = row.get(field)
        if not isinstance(value, str | None):
            found = f"{field!r} holds {value!r:.40} ({type(value).__name__})"
            raise DataError(f"{path}, line {number}: {found}, expected text")
        yield number, value
    if fields and not met:
        raise _no_field(path, field, fields)


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = f"not JSON ({error})"
        raise DataError(f"{path}, line {number}: {what}; expected one object a line") from None
    if not isinstance(row, dict):
        what = f"found a JSON {type(row).__name__}"
        raise DataError(f"{path}, line {number}: {what}, expected an object")
    return row


def _no_field(path: Path, field: str, fields: set[str]) -> DataError:
    there = ", ".join(sorted(fields)) or "none"
    return DataError(f"{path}: no field {field!r}; the fields there are: {there}")


def _csv(path: Path, source: CsvSource) -> Iterator[tuple[int, str | None]]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long document
    rows = csv.reader((line for _, line in _lines(path)), delimiter=source.delimiter, strict=True)
    try:
        header = next(rows, [])
        if source.text_field not in header:
            raise _no_field(path, source.text_field, set(header))
        column = header.index(source.text_field)
        for row in rows:
            if len(row) > len(header):
                what = f"{len(row)} fields under a header of {len(header)}"
                raise DataError(f"{path}, line {rows.line_num}: {what}; check delimiter and quotes")
            if row:
                yield rows.line_num, row[column] if column < len(row) else None
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not CSV ({error})") from None


def _text(path: Path, source: TextSource) -> Iterator[tuple[int, str | None]]:
    if source.document == "line":
        yield from ((number, line.rstrip("\r\n")) for number, line in _lines(path))
    elif source.document == "file":
        yield 1, "".join(line for _, line in _lines(path))
    else:
        gathered: list[str] = []
        for number, line in _lines(path):
            if line.strip():
                gathered.append(line)
            elif gathered:
                yield number - len(gathered), "".join(gathered)
                gathered = []
        if gathered:
            yield number - len(gathered) + 1, "".join(gathered)


def _parquet(path: Path, field: str) -> Iterator[tuple[int, str | None]]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path) as table:
            if field not in table.schema_arrow.names:
                raise _no_field(path, field, set(table.schema_arrow.names))
            kind = table.schema_arrow.field(field).type
            if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
                raise DataError(f"{path}: column {field!r} holds {kind}, expected text")
            number = 0
            for batch in table.iter_batches(batch_size=4096, columns=[field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield number, value
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({first})") from None
