"""The report stage: one HTML page and the same as Markdown, in the run's folder."""

from __future__ import annotations

from pipeline.recipe import Recipe
from pipeline.report.content import compose
from pipeline.report.load import read_run
from pipeline.report.save import save
from pipeline.run_folder import StageOutput


def write_report(recipe: Recipe) -> StageOutput:
    """Write report.html, report.md and its pictures. DataError when the run has not trained yet."""
    folder = recipe.run_folder
    run = read_run(folder, recipe.model_dump(mode="json"))
    document = compose(run, recipe.report.title or recipe.run.name, recipe.report.max_points)
    outputs = save(document, folder / "report.html", folder / "report.md")
    pictures = sum(1 for _ in document.pictures())
    return StageOutput(outputs, {"pictures": pictures, "training_lines": len(run.training)})
