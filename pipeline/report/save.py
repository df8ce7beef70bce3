"""A document written to disk: a page, its Markdown twin, and the twin's pictures in a folder."""

from __future__ import annotations

from pathlib import Path

from data_prep.errors import RecipeError
from data_prep.manifest import write_atomic
from pipeline.report import html, markdown
from pipeline.report.document import Document


def save(document: Document, page: Path, text: Path) -> list[Path]:
    """Write `page` (HTML), `text` (Markdown) and PAGE/*.png without its ending; all the paths.
    RecipeError when a file stands where the folder would be."""
    pictures = page.with_suffix("")
    try:
        pictures.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RecipeError(f"{error.filename}: a file is in the way, expected a folder") from None
    written = [page, text]
    for picture in document.pictures():
        written.append(pictures / f"{picture.name}.png")
        write_atomic(written[-1], picture.png)
    write_atomic(page, html.render(document))
    write_atomic(text, markdown.render(document, pictures.name))
    return written
