"""JSON lines. Blocks of lines are decoded at once into structs that hold only the fields of the
recipe; a block with anything unusual in it is read again line by line, so that one bad record
costs itself and nothing else."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..files import Lines, TooLong, read_lines
from ..recipe.sources import JsonlSource
from .rows import FieldCheck, Rejects, Rows, as_text, is_unicode

_SHARED_LINE = re.compile(rb"}[ \t\r]*{")
_OPENING, _CLOSING = b"{}"
_Scalar = str | int | float | bool | None


def read_jsonl(
    path: Path,
    source: JsonlSource,
    rejects: Rejects,
    span: tuple[int, int | None] = (0, None),
    tolerate_damage: bool = False,
) -> Iterator[Rows]:
    """The rows of a file, or of a byte range of one that is not packed."""
    reader = _Reader(path, source, rejects)
    # A range further down may lack a rare field; the head of the file is where it is looked for.
    check = FieldCheck(path, source.fields if span[0] == 0 else [])
    for lines in read_lines(path, *span, tolerate_damage):
        if isinstance(lines, TooLong):
            rejects.add_too_long(path, lines)
            continue
        if check.pending:
            _show(check, lines)
        yield reader.rows(lines)
        rejects.lines = lines.first + lines.total - 1
    check.end()


def _show(check: FieldCheck, lines: Lines) -> None:
    for line in lines.data.split(b"\n"):
        row = _lenient(line) if line.strip() else None
        if isinstance(row, dict):
            check.see(row)
        if not check.pending:
            return


class _Reader:
    def __init__(self, path: Path, source: JsonlSource, rejects: Rejects) -> None:
        self._path, self._source, self._rejects = path, source, rejects
        self._names = list(dict.fromkeys(source.fields))
        text_fields = set(source.text_fields)
        types = [(str | None) if name in text_fields else _Scalar for name in self._names]
        attributes = [f"f{number}" for number in range(len(self._names))]
        struct = msgspec.defstruct(
            "Row",
            [(a, t, None) for a, t in zip(attributes, types, strict=True)],  # type: ignore[misc]
            rename=dict(zip(attributes, self._names, strict=True)),
            gc=False,
        )
        self._struct = struct
        self._decoder = msgspec.json.Decoder(struct)
        attribute = dict(zip(self._names, attributes, strict=True))
        self._texts = [attribute[name] for name in source.text_fields]
        self._label = attribute[source.label_field] if source.label_field else None
        self._id = attribute[source.id_field] if source.id_field else None

    def rows(self, lines: Lines) -> Rows:
        try:
            # The decoder does not mind where lines end: objects that share one would go unseen.
            shared = not _is_plain(lines) and _SHARED_LINE.search(lines.data)
            found = [] if shared else self._decoder.decode_lines(lines.data)
            records = np.arange(lines.first, lines.first + lines.total)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            found = []
        if len(found) != lines.total:  # something is wrong, or there are blank lines
            found, records = self._one_by_one(lines)
        texts = self._joined(found)
        if not all(texts):
            found, records, texts = self._with_text(found, records, texts)
        labels = [as_text(getattr(row, self._label)) for row in found] if self._label else None
        ids = [as_text(getattr(row, self._id)) for row in found] if self._id else None
        return Rows(texts, records, labels, ids)

    def _joined(self, found: list[Any]) -> list[str]:
        if len(self._texts) == 1 and self._texts[0] == "f0":
            return [row.f0 for row in found]
        parts = ([getattr(row, name) for name in self._texts] for row in found)
        return [self._source.join_with.join(filter(None, part)) for part in parts]

    def _with_text(
        self, found: list[Any], records: np.ndarray, texts: list[str]
    ) -> tuple[list[Any], np.ndarray, list[str]]:
        has_text = np.array(list(map(bool, texts)))
        for record in records[~has_text].tolist():
            self._rejects.add(self._path, record, "no_text")
        return list(compress(found, texts)), records[has_text], list(filter(None, texts))

    def _one_by_one(self, lines: Lines) -> tuple[list[Any], np.ndarray]:
        found, records = [], []
        for number, line in enumerate(lines.data.split(b"\n")[: lines.total], lines.first):
            if not line.strip():
                continue
            try:
                row = self._decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                row = self._unusual(line, number)
            if row is not None:
                found.append(row)
                records.append(number)
        return found, np.array(records, np.int64)

    def _unusual(self, line: bytes, number: int) -> Any:
        """The row of a line that the strict decoder refuses; None when it is none."""
        value = _lenient(line)
        if isinstance(value, Exception):
            reason = "not_utf8" if isinstance(value, UnicodeDecodeError) else "not_json"
            self._rejects.add(self._path, number, reason, str(value))
            return None
        if not isinstance(value, dict):
            self._rejects.add(self._path, number, "not_object", f"found {type(value).__name__}")
            return None
        values = [value.get(name) for name in self._names]
        for name, held in zip(self._names, values, strict=True):
            allowed = str if name in self._source.text_fields else str | int | float | bool
            if held is not None and not isinstance(held, allowed):
                detail = f"{name!r} holds {type(held).__name__}, expected text"
                self._rejects.add(self._path, number, "not_text", detail)
                return None
            if isinstance(held, str) and not is_unicode(held):
                self._rejects.add(self._path, number, "not_unicode", f"in {name!r}")
                return None
        return self._struct(*values)


def _is_plain(lines: Lines) -> bool:
    """Whether every line begins with a brace and ends with one. No newline can then stand inside
    of valid JSON, so each line holds an object at least, and as many objects as lines mean one
    in each. Many times as fast as a search."""
    data, newlines = np.frombuffer(lines.data, np.uint8), lines.newlines
    begins, ends = data[newlines[:-1] + 1], data[newlines - 1]
    return bool(data[0] == _OPENING and (begins == _OPENING).all() and (ends == _CLOSING).all())


def _lenient(line: bytes) -> Any:
    """A line as JSON with what Python accepts beyond it (NaN), or as the Python literal that the
    first Amazon dumps hold; the exception when it is neither."""
    try:
        text = line.decode()
        if text.lstrip().startswith(("{'", "{u'")):
            return ast.literal_eval(text.strip())
        return json.loads(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        return error
