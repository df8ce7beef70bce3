"""Texts with a label or a rating, from CSV or JSON lines, plain or packed."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.clean import clean
from data_prep.errors import DataError
from data_prep.files import PACKED, read_text
from data_prep.recipe.data import CleanConfig


class Labelled(NamedTuple):
    """A cleaned text, its label as the file has it, and where it stands."""

    text: str
    label: Any
    place: str


def read_labelled(
    path: Path | str, text_field: str, label_field: str, cleaning: CleanConfig
) -> list[Labelled]:
    """The texts of a file that are left after cleaning, with their labels.

    DataError names the line when the file is missing or damaged, is neither CSV nor JSON lines, or
    a row lacks one of the fields.
    """
    path = Path(path)
    found = []
    for line, row in read_rows(path):
        place = f"{path}, line {line}"
        for field in (text_field, label_field):
            if row.get(field) is None:
                fields = ", ".join(map(str, row)) or "none"
                raise DataError(f"{place}: no field {field!r}; the fields there are: {fields}")
        if not isinstance(row[text_field], str):
            raise DataError(f"{place}: {text_field!r} holds {row[text_field]!r:.40}, expected text")
        text = clean(row[text_field], cleaning, Counter())
        if text:
            found.append(Labelled(text, row[label_field], place))
    return found


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV or JSON lines file by field, each with the number of its line.

    DataError when the file is missing or damaged, or is neither.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist (seen from {Path.cwd()}): correct the path")
    kind = (path.stem if path.suffix in PACKED else path.name).rpartition(".")[2]
    if kind not in ("csv", "jsonl", "json"):
        hint = f"rows are read from .csv or .jsonl files, plain or {' '.join(PACKED)}"
        raise DataError(f"{path}: {hint}")
    return (_csv if kind == "csv" else _jsonl)(path, read_text(path))


def chosen(texts: list[Labelled], most: int | None, seed: int) -> list[Labelled]:
    """A seeded choice of at most `most` texts, in their order; None takes all."""
    if most is None or len(texts) <= most:
        return texts
    places = np.random.default_rng(seed).choice(len(texts), most, replace=False)
    return [texts[place] for place in np.sort(places)]


def _jsonl(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: a JSON {type(row).__name__}, expected an object"
            )
        yield number, row


def _csv(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long document
    rows = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        for row in rows:
            if None in row:
                raise DataError(f"{path}, line {rows.line_num}: more fields than the header names")
            yield rows.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not CSV ({error})") from None
