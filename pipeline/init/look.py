"""What is in a file: its format, the field that holds the text, and how much text there is.

Content decides where it can; the name settles whether commas are columns or prose. The estimates
come from the beginning of the file.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from pipeline.init.parquet import parquet_rows
from pipeline.init.sample import Sample, magic, read_sample

_CSV_NAMES = (".csv", ".tsv", ".tab")
_DELIMITERS = ",\t;|"
_LEAST_DOCUMENTS = 30  # fewer cannot be split into training and held-out text
_LEAST_BYTES = 20_000
_PARAGRAPH_LINES = 20  # on average at most; where blank lines are rarer they separate no documents
_PROMPTS = 3
_BLANK_LINE = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Found:
    """A file that can be trained on; `source` is its `data.sources` entry without the path."""

    format: str  # for people
    source: dict[str, str]
    text_bytes: int
    documents: int
    prompts: list[str]  # beginnings of some documents
    others: list[str]  # fields that were not chosen

    @property
    def held_out_share(self) -> float:
        """Share for each held-out split: 2 %, more where that is fewer than twenty documents."""
        return round(min(0.2, max(0.02, 20 / self.documents)), 3)

    @property
    def training_bytes(self) -> int:
        """Bytes of text left to train on."""
        return round(self.text_bytes * (1 - 2 * self.held_out_share))

    @property
    def text_field(self) -> str | None:
        """The field that holds the text, None in plain text."""
        return self.source.get("text_field")


def look(path: Path) -> Found:
    """Find the text in a file. DataError says what is wrong with it."""
    if magic(path).startswith(b"PAR1"):
        rows, scale = parquet_rows(path)
        found = _in_rows(path, {"kind": "parquet"}, "Parquet", rows, scale)
    else:
        found = _in_text(path, read_sample(path))
    for amount, least, what in (
        (found.documents, _LEAST_DOCUMENTS, "documents"),
        (found.text_bytes, _LEAST_BYTES, "bytes of text"),
    ):
        if amount < least:
            raise DataError(f"{path} holds about {amount:,} {what}; at least {least:,} are needed")
    return found


def _in_text(path: Path, sample: Sample) -> Found:
    lines = sample.lines()
    if lines[0].lstrip().startswith("{"):
        rows = _json_rows(path, lines)
        return _in_rows(path, {"kind": "jsonl"}, "JSON lines", rows, sample.scale)
    if lines[0].lstrip().startswith("[") and ".json" in path.suffixes:
        raise DataError(f"{path} is a JSON array; write one object a line (jq -c '.[]' does that)")
    delimiter = _delimiter(path, sample)
    if delimiter is None:
        return _plain(sample)
    name = "tab-separated" if delimiter == "\t" else f"CSV, columns end at {delimiter!r}"
    header, *records = _csv_rows(sample, delimiter)
    rows = [dict(zip(header, record, strict=False)) for record in records]
    return _in_rows(path, {"kind": "csv", "delimiter": delimiter}, name, rows, sample.scale)


def _json_rows(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, object {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, object {number}: found {line:.40}, expected a JSON object")
        rows.append(row)
    return rows


def _delimiter(path: Path, sample: Sample) -> str | None:
    """The delimiter that makes the most columns, None for plain text.

    Prose has commas too: without a name that says CSV only tabs count.
    """
    named = any(suffix.lower() in _CSV_NAMES for suffix in path.suffixes)
    columns = {mark: _columns(sample, mark) for mark in (_DELIMITERS if named else "\t")}
    best = max(columns, key=lambda mark: columns[mark])
    if named and not columns[best]:
        raise DataError(f"{path}: no table of a header and rows as wide; check its quotes")
    return best if named or columns[best] >= 2 else None


def _columns(sample: Sample, delimiter: str) -> int:
    """Columns of the table that a delimiter makes; 0 when it does not make one."""
    try:
        rows = _csv_rows(sample, delimiter)
    except csv.Error:
        return 0
    if len(rows) < 2:
        return 0
    header = rows[0]
    fits = all(len(row) <= len(header) for row in rows) and len(set(header)) == len(header)
    return len(header) if fits else 0


def _csv_rows(sample: Sample, delimiter: str) -> list[list[str]]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long document
    lines = io.StringIO(sample.text, newline="\n")
    rows = []
    try:
        for row in csv.reader(lines, delimiter=delimiter, strict=True):
            rows.append(row)
    except csv.Error:
        # The sample may end inside a quoted field; a mistake before its end is one.
        if sample.whole or lines.readline():
            raise
    else:
        if not sample.whole:
            rows.pop()
    return [row for row in rows if row]


def _in_rows(
    path: Path, source: dict[str, str], name: str, rows: list[dict[str, Any]], scale: float
) -> Found:
    """The field with the most text. Every row of it must be text, or nothing."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    texts = {key: [row[key] for row in rows if row.get(key)] for key in names}
    sizes = {key: _text_bytes(values) for key, values in texts.items()}
    chosen = max(names, key=lambda key: sizes[key], default=None)
    if chosen is None or not sizes[chosen]:
        seen = ", ".join(f"{key} ({_example(texts[key])})" for key in names) or "none"
        raise DataError(f"{path}: no field holds text; the fields are: {seen}")
    return Found(
        format=name,
        source=source | {"text_field": chosen},
        text_bytes=round(sizes[chosen] * scale),
        documents=round(len(texts[chosen]) * scale),
        prompts=_prompts(texts[chosen]),
        others=[key for key in names if key != chosen],
    )


def _text_bytes(values: list[Any]) -> int:
    """UTF-8 bytes of a field; 0 when it is not text, such as numbers spelled out."""
    if not all(isinstance(value, str) for value in values):
        return 0
    if not any(character.isalpha() for value in values for character in value):
        return 0
    return sum(len(value.encode("utf-8", "replace")) for value in values)


def _example(values: list[Any]) -> str:
    return f"such as {values[0]!r:.20}" if values else "always empty"


def _plain(sample: Sample) -> Found:
    """Paragraphs where blank lines make enough of them, else lines."""
    paragraphs = [part for part in _BLANK_LINE.split(sample.text) if part.strip()]
    lines = sample.lines()
    unit, documents = "line", lines
    enough = len(paragraphs) * sample.scale >= _LEAST_DOCUMENTS
    if enough and len(lines) <= _PARAGRAPH_LINES * len(paragraphs):
        unit, documents = "paragraph", paragraphs
    return Found(
        format=f"plain text, a document is a {unit}",
        source={"kind": "text", "document": unit},
        text_bytes=round(sum(len(document.encode()) for document in documents) * sample.scale),
        documents=round(len(documents) * sample.scale),
        prompts=_prompts(documents),
        others=[],
    )


def _prompts(texts: Iterable[str]) -> list[str]:
    """The first words of some documents: what the trained model is asked to go on with."""
    beginnings = (" ".join(text.split()[:3])[:40] for text in texts if text.strip())
    return list(islice(dict.fromkeys(beginnings), _PROMPTS))
