"""A document as Markdown, for places that show no HTML: pictures are files beside it.

Text from data and models is escaped, so that it can neither end a table cell nor become markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.report.document import Block, Code, Document, Paragraph, Picture, Sample, Table

_SPECIAL = re.compile(r"([\\`*_|])")
_BACKTICKS = re.compile("`+")


def render(document: Document, pictures: str) -> str:
    """The text; links point to `pictures`/NAME.png."""
    parts = [f"# {_text(document.title)}"]
    for section in document.sections:
        if section.blocks:
            parts.append(f"## {_text(section.title)}")
            parts += [_block(block, pictures) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block, pictures: str) -> str:
    if isinstance(block, Paragraph):
        text = _text(block.text)
        return f"**{text}**" if block.strong else text
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Picture):
        return f"![{_text(block.title)}]({pictures}/{block.name}.png)"
    if isinstance(block, Sample):
        return _fenced(block.prompt + block.continuation)
    assert isinstance(block, Code)
    return _fenced(block.text)


def _table(table: Table) -> str:
    rule = ["---" if i < table.words else "---:" for i in range(len(table.header))]
    lines = [_row(map(_text, table.header)), _row(rule)]
    return "\n".join(lines + [_row(map(_text, row)) for row in table.rows])


def _row(cells: Sequence[str] | map[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(text: str) -> str:
    plain = _SPECIAL.sub(r"\\\1", " ".join(text.split()))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max(map(len, _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
