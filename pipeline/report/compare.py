"""Runs side by side: what each cost, how good it became, and one sentence a run.

Bits per byte of held-out text are drawn against tokens, counted FLOPs, seconds and money. A loss
per token means something else under another tokenizer, so that is refused where they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.errors import RecipeError
from pipeline.report.audit import audit_sections
from pipeline.report.document import Block, Document, Paragraph, Picture, Section, Table
from pipeline.report.figures import (
    BITS,
    FLOPS,
    LOSS,
    MONEY,
    SECONDS,
    TOKENS,
    Axis,
    Curve,
    draw,
)
from pipeline.report.intervals import Point, draw_intervals
from pipeline.report.load import column
from pipeline.report.quality import is_share
from pipeline.report.save import save
from pipeline.report.summary import HEADER, Summary, caveats, comparable, read_summaries, row
from pipeline.report.verdict import quality_blocks, verdict

By = Literal["bits", "loss"]
_AGAINST: tuple[tuple[str, str, Axis], ...] = (
    ("train/tokens", "tokens", TOKENS),
    ("flops/counted", "counted FLOPs", FLOPS),
    ("time/train_s", "seconds", SECONDS),
    ("money", "money", MONEY),
)
_MEASURED: dict[By, tuple[str, str, Axis]] = {
    "bits": ("eval/bits_per_byte", "Bits per byte", BITS),
    "loss": ("eval/loss", "Loss per token", LOSS),
}
_MAX_POINTS = 2000


def compare_runs(
    folders: Sequence[Path], out: Path, price: float | None = None, by: By = "bits"
) -> Path:
    """Write `out`/compare.html and compare.md; the path of the page.

    `price` is of a device for an hour. RecipeError for fewer than two runs, a folder that is no
    run or has not trained, or losses per token of different tokenizers.
    """
    if len(folders) < 2:
        given = ", ".join(map(str, folders)) or "none"
        raise RecipeError(f"found {len(folders)} runs ({given}): give at least two to compare")
    runs = comparable(read_summaries(folders, price))
    check_comparable(runs, by)
    verdicts = [Paragraph(verdict(run, runs[0], by), strong=True) for run in runs[1:]]
    blocks: list[Block] = [
        Paragraph(f"Against {runs[0].label} (less is better, accuracies aside):"),
        *verdicts,
    ]
    blocks += map(Paragraph, caveats(runs))
    blocks.append(Table(HEADER, [row(run) for run in runs], words=2))
    curves = pictures(by, lambda cost: [run_curve(run, cost, by) for run in runs])
    quality = quality_blocks(runs)
    if picture := _accuracies(runs):
        quality.append(picture)
    sections = [
        Section("Result", blocks),
        Section("Curves", curves),
        Section("Quality on each task", quality),
        *audit_sections({run.name: run.audit for run in runs if run.audit}),
    ]
    document = Document("Runs compared", sections)
    return save(document, out / "compare.html", out / "compare.md")[0]


def check_comparable(runs: Sequence[Summary], by: By) -> None:
    """RecipeError where losses per token would be compared across tokenizers."""
    if by == "loss" and len({run.tokenizer for run in runs}) > 1:
        names = ", ".join(run.name for run in runs)
        raise RecipeError(
            f"{names} have different tokenizers, so their losses are per different tokens: "
            "compare them by bits per byte (--by bits, the default)"
        )


def pictures(by: By, curves: Callable[[str], list[Curve]]) -> list[Picture]:
    """The measure against each cost that is known; `curves` draws them for a cost's key."""
    _, what, axis = _MEASURED[by]
    drawn = [
        draw(f"{by}_{name.split()[-1].lower()}", f"{what} against {name}", cost, axis,
             curves(key), _MAX_POINTS)
        for key, name, cost in _AGAINST
    ]  # fmt: skip
    return [picture for picture in drawn if picture is not None]


def run_curve(run: Summary, cost: str, by: By) -> Curve:
    """The run's evaluations as a curve over a cost; empty where that is not known."""
    y = column(run.evaluations, _MEASURED[by][0])
    return Curve(run.name, cost_column(run, cost), y, "points")


def cost_column(run: Summary, cost: str) -> np.ndarray:
    """The cost at each evaluation; NaN where it is not known. Money is time at a price."""
    if cost != "money":
        return column(run.evaluations, cost)
    rate = run.money_per_second
    return column(run.evaluations, "time/train_s") * (np.nan if rate is None else rate)


def _accuracies(runs: Sequence[Summary]) -> Picture | None:
    """Every share that has an interval, in percent."""
    points: dict[str, dict[str, Point]] = {run.name: {} for run in runs}
    for run in runs:
        for (task, metric), measure in run.measures.items():
            if is_share(metric) and measure.interval:
                low, high = measure.interval
                label = f"{task} {metric.replace('_', ' ')}"
                points[run.name][label] = (100 * measure.value, 100 * low, 100 * high)
    rows = list(dict.fromkeys(label for found in points.values() for label in found))
    title = "Accuracy on each task with 95 % intervals"
    return draw_intervals("quality", title, ("share right (%)", "task"), rows, points)
