"""A document as one HTML file that loads nothing: style inside, pictures as data, no scripts.

Wide tables scroll in a box of their own and pictures shrink, so a phone shows the page without
moving it sideways.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from itertools import groupby

from pipeline.report.document import Block, Code, Document, Paragraph, Picture, Sample, Table

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; color: #1c2328; background: #fff;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; padding-bottom: .25rem;
  border-bottom: 1px solid #d5dade; }
p { margin: .6rem 0; }
p.verdict { padding: .6rem .9rem; background: #eef5fa; border-left: 4px solid #0b6fa4; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: .3rem .8rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e3e7ea; overflow-wrap: normal; }
th { background: #f4f6f7; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
img { display: block; max-width: 100%; height: auto; }
pre { margin: .8rem 0; padding: .7rem .9rem; background: #f4f6f7; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .88rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
pre b { color: #0b6fa4; }
"""


def render(document: Document) -> str:
    """The page as text."""
    body = [f"<h1>{escape(document.title)}</h1>"]
    for section in document.sections:
        if section.blocks:
            body += [f"<section>\n<h2>{escape(section.title)}</h2>", _blocks(section.blocks)]
            body.append("</section>")
    head = (
        '<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(document.title)}</title>\n<style>{_STYLE}</style>"
    )
    lines = "\n".join(body)
    page = f"<head>\n{head}\n</head>\n<body>\n{lines}\n</body>"
    return f'<!DOCTYPE html>\n<html lang="en">\n{page}\n</html>\n'


def _blocks(blocks: Sequence[Block]) -> str:
    """Blocks one after another; neighbouring pictures share a grid."""
    lines: list[str] = []
    for pictures, group in groupby(blocks, key=lambda block: isinstance(block, Picture)):
        inner = "\n".join(map(_block, group))
        lines.append(f'<div class="pictures">\n{inner}\n</div>' if pictures else inner)
    return "\n".join(lines)


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        opening = '<p class="verdict">' if block.strong else "<p>"
        return f"{opening}{escape(block.text)}</p>"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Picture):
        data = base64.b64encode(block.png).decode()
        alternative = escape(f"{block.title}: {block.axes}")
        return f'<img alt="{alternative}" src="data:image/png;base64,{data}">'
    if isinstance(block, Sample):
        return f"<pre><b>{escape(block.prompt)}</b>{escape(block.continuation)}</pre>"
    assert isinstance(block, Code)
    return f"<pre>{escape(block.text)}</pre>"


def _table(table: Table) -> str:
    rows = [_row("th", table.header, table.words)]
    rows += [_row("td", row, table.words) for row in table.rows]
    return '<div class="scroll"><table>\n' + "\n".join(rows) + "\n</table></div>"


def _row(tag: str, cells: Sequence[str], words: int) -> str:
    kinds = ["" if i < words else ' class="number"' for i in range(len(cells))]
    inner = "".join(
        f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
    )
    return f"<tr>{inner}</tr>"
