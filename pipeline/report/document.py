"""What a report consists of, apart from how it is written down.

`html` and `markdown` each render every block kind; a report is composed once, of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Paragraph:
    """A sentence or more; a strong one is a verdict."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header. The first `words` columns hold words, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


@dataclass(frozen=True)
class Picture:
    """A PNG; `name` is its file name without ending, `axes` says in words what is drawn."""

    name: str
    title: str
    axes: str
    png: bytes


@dataclass(frozen=True)
class Sample:
    """A prompt and the text that the model wrote after it."""

    prompt: str
    continuation: str


@dataclass(frozen=True)
class Code:
    """Text kept as it is, line by line."""

    text: str


Block = Paragraph | Table | Picture | Sample | Code


@dataclass(frozen=True)
class Section:
    """A headed part; one without blocks is not written."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    sections: Sequence[Section]

    def pictures(self) -> Iterator[Picture]:
        """Every picture, in order."""
        for section in self.sections:
            yield from (block for block in section.blocks if isinstance(block, Picture))
