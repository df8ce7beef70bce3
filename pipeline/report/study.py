"""A study's arms side by side: each a mean over its seeds, with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep.errors import RecipeError
from pipeline.report import numbers as show
from pipeline.report.audit import audit_sections
from pipeline.report.compare import By, check_comparable, cost_column, pictures, run_curve
from pipeline.report.document import Block, Document, Paragraph, Section, Table
from pipeline.report.figures import Curve
from pipeline.report.quality import is_share
from pipeline.report.save import save
from pipeline.report.summary import Summary, caveats, comparable, read_summaries
from pipeline.report.verdict import SEEDS_RULE, arm_verdict


def study_table(
    groups: Mapping[str, Sequence[Path]],
    out: Path,
    title: str,
    missing: Sequence[str] = (),
    price: float | None = None,
    by: By = "bits",
) -> Path:
    """Write `out`/table.md and compare.html of a study's arms; the path of the table.

    `groups` holds the runs of each arm, one a seed, the first arm being the base; `missing` names
    runs that have not trained. RecipeError when a folder is no run.
    """
    for arm, folders in groups.items():
        if not folders:
            raise RecipeError(f"arm {arm!r} has no runs: run the study first")
    arms = {arm: read_summaries(folders, price) for arm, folders in groups.items()}
    every = comparable([run for runs in arms.values() for run in runs])
    order = iter(every)
    arms = {arm: [next(order) for _ in runs] for arm, runs in arms.items()}
    check_comparable(every, by)
    base, *others = arms
    blocks: list[Block] = [Paragraph(f"Against {base} (less is better, accuracies aside):")]
    blocks += [
        Paragraph(arm_verdict(arm, arms[arm], arms[base], by), strong=True) for arm in others
    ]
    blocks.append(Paragraph(f"Mean ± standard deviation over the seeds of an arm. {SEEDS_RULE}"))
    blocks += map(Paragraph, caveats(every))
    if missing:
        blocks.append(Paragraph(f"Not trained yet, or failed before: {', '.join(missing)}."))
    blocks.append(_costs(arms))
    curves = pictures(
        by, lambda cost: [_mean_curve(arm, runs, cost, by) for arm, runs in arms.items()]
    )
    sections = [
        Section("Result", blocks if others else blocks[1:]),
        Section("Curves", curves),
        Section("Quality on each task", _quality(arms)),
        *audit_sections({runs[0].name: runs[0].audit for runs in arms.values() if runs[0].audit}),
    ]
    return save(Document(title, sections), out / "compare.html", out / "table.md")[1]


def _mean_curve(arm: str, runs: Sequence[Summary], cost: str, by: By) -> Curve:
    """Mean over seeds at each step that all of them evaluated; the band is one deviation."""
    steps = [[line["step"] for line in run.evaluations] for run in runs]
    common = sorted(set.intersection(*map(set, steps)))
    places = [[found.index(step) for step in common] for found in steps]
    x = np.array([cost_column(run, cost)[at] for run, at in zip(runs, places, strict=True)])
    y = np.array([run_curve(run, cost, by).y[at] for run, at in zip(runs, places, strict=True)])
    spread = y.std(axis=0, ddof=1) if len(runs) > 1 else None
    return Curve(arm, x.mean(axis=0), y.mean(axis=0), "points", spread)


def _costs(arms: Mapping[str, Sequence[Summary]]) -> Table:
    rows = [
        [
            arm,
            str(len(runs)),
            _spread([run.bits_per_byte for run in runs], lambda value: show.decimal(value, 4)),
            _spread([run.seconds for run in runs], show.seconds),
            _spread([run.money for run in runs], lambda value: show.decimal(value, 2)),
            _spread([run.dense_flops for run in runs], show.flops),
            _spread([run.counted_flops for run in runs], show.flops),
        ]
        for arm, runs in arms.items()
    ]
    header = [
        "arm", "seeds", "final bits per byte", "seconds", "money", "FLOPs dense", "FLOPs counted",
    ]  # fmt: skip
    return Table(header, rows)


def _quality(arms: Mapping[str, Sequence[Summary]]) -> list[Block]:
    """A row for each measure of any arm; a dash where one seed lacks it."""
    names = dict.fromkeys(name for runs in arms.values() for run in runs for name in run.measures)
    rows = []
    for task, metric in names:
        write = show.percent if is_share(metric) else show.decimal
        found = [[run.measures.get((task, metric)) for run in runs] for runs in arms.values()]
        values = [[None if one is None else one.value for one in runs] for runs in found]
        rows.append([task, metric.replace("_", " "), *(_spread(each, write) for each in values)])
    return [Table(["task", "metric", *arms], rows, words=2)] if rows else []


def _spread(values: Sequence[float | None], write: Callable[[float | None], str]) -> str:
    """`mean ± deviation`; a dash unless every seed has the value."""
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return show.DASH
    deviation = statistics.stdev(present) if len(present) > 1 else None
    return f"{write(statistics.fmean(present))} ± {write(deviation)}"
