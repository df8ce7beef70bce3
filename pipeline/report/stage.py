"""The report stage: one HTML page and the same as Markdown, in the run's folder."""

from __future__ import annotations

from pathlib import Path

from data_prep.manifest import write_atomic
from pipeline.recipe import Recipe
from pipeline.report import html, markdown
from pipeline.report.content import compose
from pipeline.report.document import Document
from pipeline.report.load import read_run
from pipeline.run_folder import StageOutput


def write_report(recipe: Recipe) -> StageOutput:
    """Write report.html and report.md of the recipe's run.

    DataError when the run has not trained yet.
    """
    run = read_run(recipe.run_folder, recipe.model_dump(mode="json"))
    title = recipe.report.title or recipe.run.name
    document = compose(run, title, recipe.report.max_points)
    outputs = save(document, recipe.run_folder, "report")
    pictures = sum(1 for _ in document.pictures())
    return StageOutput(outputs, {"pictures": pictures, "training_lines": len(run.training)})


def save(document: Document, folder: Path, name: str, markdown_name: str = "") -> list[Path]:
    """Write NAME.html, its Markdown twin and the twin's pictures in NAME/; the paths, HTML first."""
    pictures = folder / name
    pictures.mkdir(parents=True, exist_ok=True)
    page, text = folder / f"{name}.html", folder / f"{markdown_name or name}.md"
    written = [page, text]
    for picture in document.pictures():
        written.append(pictures / f"{picture.name}.png")
        write_atomic(written[-1], picture.png)
    write_atomic(page, html.render(document))
    write_atomic(text, markdown.render(document, name))
    return written
