"""Pictures of values with their 95 % limits: a row for each thing, a colour for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pipeline.report.document import Picture
from pipeline.report.figures import COLOURS, as_picture

Point = tuple[float, float, float]  # value, low, high


def draw_intervals(
    name: str,
    title: str,
    axes_labels: tuple[str, str],
    rows: Sequence[str],
    runs: Mapping[str, Mapping[str, Point]],
) -> Picture | None:
    """`runs` has each run's points by the row they belong to; `axes_labels` are of the values, with
    their unit, and of the rows. None when there is no point."""
    if not any(runs.values()):
        return None
    height = 1.6 + len(rows) * (0.16 + 0.17 * len(runs))
    figure = Figure(figsize=(6.4, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    step = 0.7 / max(1, len(runs))
    for number, (run, points) in enumerate(runs.items()):
        places = [row for row, label in enumerate(rows) if label in points]
        if not places:
            continue
        found = [points[rows[place]] for place in places]
        values = [value for value, _, _ in found]
        lower = [max(0.0, value - low) for value, low, _ in found]
        upper = [max(0.0, high - value) for value, _, high in found]
        heights = [place + (number - (len(runs) - 1) / 2) * step for place in places]
        axes.errorbar(values, heights, xerr=[lower, upper], fmt="o", markersize=4, capsize=3,
                      color=COLOURS[number % len(COLOURS)], label=run)  # fmt: skip
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(axes_labels[0])
    axes.set_ylabel(axes_labels[1])
    # Long names of rows leave the axes little width, so title and legend belong to the figure.
    figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=9, frameon=False, loc="outside lower left", ncols=3)
    return as_picture(figure, name, title)
