"""Plain UTF-8 text: a line, a paragraph between blank lines, or a whole file is a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..files import Lines, TooLong, read_lines, read_whole
from ..recipe.sources import TextSource
from .rows import Rejects, Rows

_PARAGRAPHS_PER_BLOCK = 256


def read_plain(
    path: Path,
    source: TextSource,
    rejects: Rejects,
    span: tuple[int, int | None] = (0, None),
    tolerate_damage: bool = False,
) -> Iterator[Rows]:
    """The documents of a file; empty lines and paragraphs are no documents."""
    for rows in _documents(path, source, rejects, span, tolerate_damage):
        yield rows if source.piece_characters is None else _cut(rows, source.piece_characters)


def _documents(
    path: Path,
    source: TextSource,
    rejects: Rejects,
    span: tuple[int, int | None],
    tolerate_damage: bool,
) -> Iterator[Rows]:
    if source.document == "file":
        text = _decoded(path, 1, read_whole(path, tolerate_damage), rejects)
        yield Rows([text] if text else [], np.arange(1, 2 if text else 1), None, None)
    elif source.document == "line":
        for lines in _blocks(path, span, tolerate_damage, rejects):
            yield _line_rows(path, lines, rejects)
    else:
        yield from _paragraphs(path, tolerate_damage, rejects)


def _cut(rows: Rows, size: int) -> Rows:
    """Long documents in pieces, which all keep the number of the record."""
    pieces = [list(_pieces(text, size)) for text in rows.texts]
    records = np.repeat(rows.records, list(map(len, pieces)))
    return Rows([piece for found in pieces for piece in found], records, None, None)


def _pieces(text: str, size: int) -> Iterator[str]:
    start = 0
    while len(text) - start > size:
        # The white space goes with the piece before it, so the pieces add up to the document.
        space = max(text.rfind(mark, start, start + size) for mark in " \n\t")
        stop = start + size if space < start else space + 1
        yield text[start:stop]
        start = stop
    yield text[start:]


def _blocks(
    path: Path, span: tuple[int, int | None], tolerate_damage: bool, rejects: Rejects
) -> Iterator[Lines]:
    for lines in read_lines(path, *span, tolerate_damage):
        if isinstance(lines, TooLong):
            rejects.add_too_long(path, lines)
        else:
            yield lines
            rejects.lines = lines.first + lines.total - 1


def _line_rows(path: Path, lines: Lines, rejects: Rejects) -> Rows:
    found: list[str | None]
    try:
        found = list(lines.data.decode().split("\n")[: lines.total])
    except UnicodeDecodeError:
        raws = lines.data.split(b"\n")[: lines.total]
        found = [_decoded(path, n, raw, rejects) for n, raw in enumerate(raws, lines.first)]
    kept = [(t.rstrip("\r"), n) for n, t in enumerate(found, lines.first) if t and t != "\r"]
    return Rows([text for text, _ in kept], np.array([n for _, n in kept], np.int64), None, None)


def _paragraphs(path: Path, tolerate_damage: bool, rejects: Rejects) -> Iterator[Rows]:
    texts: list[str] = []
    records: list[int] = []
    gathered: list[bytes] = []
    first = 1
    for number, line in _numbered(path, tolerate_damage, rejects):
        if line.strip():
            first = first if gathered else number
            gathered.append(line)
            continue
        if gathered and (text := _decoded(path, first, b"\n".join(gathered), rejects)):
            texts.append(text)
            records.append(first)
        gathered = []
        if len(texts) >= _PARAGRAPHS_PER_BLOCK:
            yield Rows(texts, np.array(records, np.int64), None, None)
            texts, records = [], []
    yield Rows(texts, np.array(records, np.int64), None, None)


def _numbered(path: Path, tolerate_damage: bool, rejects: Rejects) -> Iterator[tuple[int, bytes]]:
    """The lines of a file without their ends, and an empty one after the last."""
    number = 0
    for lines in _blocks(path, (0, None), tolerate_damage, rejects):
        for number, line in enumerate(lines.data.split(b"\n")[: lines.total], lines.first):
            yield number, line.removesuffix(b"\r")
    yield number + 1, b""


def _decoded(path: Path, record: int, raw: bytes, rejects: Rejects) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        detail = f"byte {error.object[error.start]:#04x} at {error.start}"
        rejects.add(path, record, "not_utf8", detail)
        return None
