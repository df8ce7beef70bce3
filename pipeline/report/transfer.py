"""The transfer results: a table, and of each set's strongest unit a histogram and a heat map."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.report import numbers as show
from pipeline.report.document import Block, Paragraph, Picture, Section, Table
from pipeline.report.figures import as_picture

_LINE = 78  # characters of a heat map's line
_COLOURS = ("#d1495b", "#3a7d44")  # of the two labels
_NOTE = (
    "Features are the model's own, as they are; a logistic regression with an L1 penalty, its "
    "strength C chosen on validation texts. The strongest unit is the feature with the largest "
    "weight, fitted alone in the same way."
)


def transfer_section(results: dict[str, dict[str, Any]]) -> Section:
    """Every set in one table; pictures of each set's unit where the model has states to follow."""
    if not results:
        return Section("Transfer", [])
    header = ["set", "all features", "95 % interval", "weights", "C", "unit", "unit alone",
              "95 % interval", "majority", "texts/s"]  # fmt: skip
    rows = [_row(name, found) for name, found in results.items()]
    blocks: list[Block] = [Table(header, rows), Paragraph(_NOTE)]
    for name, found in results.items():
        blocks.append(_histogram(name, found))
        if found["courses"]:
            blocks.append(_heat_map(name, found))
    return Section("Transfer", blocks)


def _row(name: str, found: dict[str, Any]) -> list[str]:
    return [
        name,
        show.percent(found["accuracy"]),
        show.interval(found["interval"]),
        f"{show.count(found['nonzero_weights'])} of {show.count(found['features'])}",
        show.general(found["C"]),
        str(found["unit"]),
        show.percent(found["unit_accuracy"]),
        show.interval(found["unit_interval"]),
        show.percent(found["majority_accuracy"]),
        show.count(found["texts_per_second"]),
    ]


def _histogram(name: str, found: dict[str, Any]) -> Picture:
    figure = Figure(figsize=(6.4, 3.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    edges = np.array(found["histogram"]["edges"])
    shown = zip(found["histogram"]["counts"], found["labels"], _COLOURS, strict=True)
    for counts, label, colour in shown:
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.5, label=f"label {label}")
    axes.set_xlabel(f"value of unit {found['unit']} at the end of the text (no unit)")
    axes.set_ylabel("test texts (count)")
    axes.set_title(f"{name}: unit {found['unit']}", fontsize=12, fontweight="bold", loc="left")
    axes.legend(fontsize=9, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return as_picture(figure, f"unit_{name}", f"Unit {found['unit']} on the test texts of {name}")


def _heat_map(name: str, found: dict[str, Any]) -> Picture:
    """The characters of the texts on the colour of the unit's value after each."""
    lines: list[tuple[str, list[float]]] = []
    for course in found["courses"]:
        text, values = course["text"], course["values"]
        lines.append((f"label {found['labels'][course['label']]}:", []))
        cuts = range(0, len(text), _LINE)
        lines += [(text[at : at + _LINE], values[at : at + _LINE]) for at in cuts]
    every = np.concatenate([course["values"] for course in found["courses"]])
    limit = float(np.abs(every).max()) or 1.0
    figure = Figure(figsize=(8.2, 0.24 * len(lines) + 1.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    grid = np.full((len(lines), _LINE), np.nan)
    for row, (text, values) in enumerate(lines):
        grid[row, : len(values)] = values
        for place, character in enumerate(text):
            axes.text(place, row, _printable(character), ha="center", va="center",
                      fontsize=8, family="monospace", parse_math=False)  # fmt: skip
    # Low is red where a low value stands for the first label.
    colours = "RdYlGn" if found["unit_sign"] >= 0 else "RdYlGn_r"
    image = axes.imshow(grid, cmap=colours, vmin=-limit, vmax=limit, aspect="auto", alpha=0.8)
    bar = figure.colorbar(image, ax=axes, orientation="horizontal", aspect=60, pad=0.02)
    title = f"Unit {found['unit']} after each character"
    bar.set_label("value of the unit (no unit)")
    axes.set_title(title, fontsize=12, fontweight="bold", loc="left")
    axes.axis("off")
    return as_picture(figure, f"heat_{name}", title)


def _printable(character: str) -> str:
    return character if character.isprintable() else " "
