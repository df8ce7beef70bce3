"""Runs side by side, and studies: arms over seeds.

Everything is compared by bits per byte of held-out text, against tokens, seconds and counted
FLOPs, because a loss per token means something else under another tokenizer.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep.errors import RecipeError
from pipeline.report import numbers as show
from pipeline.report.document import Block, Document, Paragraph, Picture, Section, Table
from pipeline.report.figures import BITS, FLOPS, SECONDS, TOKENS, Axis, Curve, draw
from pipeline.report.load import column
from pipeline.report.save import save
from pipeline.report.summary import HEADER, Summary, caveats, read_summaries, row, verdict

_AGAINST: tuple[tuple[str, str, Axis], ...] = (
    ("train/tokens", "tokens", TOKENS),
    ("time/train_s", "seconds", SECONDS),
    ("flops/counted", "counted FLOPs", FLOPS),
)
_BITS = "eval/bits_per_byte"
_MAX_POINTS = 2000


def compare_runs(folders: Sequence[Path], out: Path) -> Path:
    """Write `out`/compare.html and compare.md; the path of the page.

    RecipeError for fewer than two runs, or a folder that is no run.
    """
    if len(folders) < 2:
        given = ", ".join(map(str, folders)) or "none"
        raise RecipeError(f"found {len(folders)} runs ({given}): give at least two to compare")
    runs = read_summaries(folders)
    verdicts = [Paragraph(verdict(run, runs[0]), strong=True) for run in runs[1:]]
    blocks: list[Block] = [
        Paragraph(f"Against {runs[0].name} (fewer bits per byte are better):"),
        *verdicts,
    ]
    blocks += map(Paragraph, caveats(runs))
    blocks.append(Table(HEADER, [row(run) for run in runs]))
    curves = _pictures(lambda key: [_curve(run, key) for run in runs])
    document = Document("Runs compared", [Section("Result", blocks), Section("Curves", curves)])
    return save(document, out / "compare.html", out / "compare.md")[0]


def study_table(groups: dict[str, list[Path]], out: Path, title: str) -> Path:
    """Write `out`/table.md and compare.html of a study's arms; the path of the table.

    `groups` holds the runs of each arm, one a seed. RecipeError when one is no run.
    """
    for arm, folders in groups.items():
        if not folders:
            raise RecipeError(f"arm {arm!r} has no runs: run the study first")
    arms = {arm: read_summaries(folders) for arm, folders in groups.items()}
    blocks: list[Block] = [Paragraph("Mean ± standard deviation over the seeds of an arm.")]
    blocks += map(Paragraph, caveats([run for runs in arms.values() for run in runs]))
    blocks.append(_study_rows(arms))
    curves = _pictures(lambda key: [_mean_curve(arm, runs, key) for arm, runs in arms.items()])
    document = Document(title, [Section("Result", blocks), Section("Curves", curves)])
    return save(document, out / "compare.html", out / "table.md")[1]


def _pictures(curves: Callable[[str], list[Curve]]) -> list[Picture]:
    """Bits per byte against each of the three costs; `curves` draws them for a metric."""
    pictures = [
        draw(f"bits_{name.split()[-1].lower()}", f"Bits per byte against {name}", axis, BITS,
             curves(key), _MAX_POINTS)
        for key, name, axis in _AGAINST
    ]  # fmt: skip
    return [picture for picture in pictures if picture is not None]


def _curve(run: Summary, key: str) -> Curve:
    return Curve(run.name, column(run.evaluations, key), column(run.evaluations, _BITS), "points")


def _mean_curve(arm: str, runs: Sequence[Summary], key: str) -> Curve:
    """Mean over seeds at each step that all of them evaluated; the band is one deviation."""
    by_step = [{line["step"]: line for line in run.evaluations} for run in runs]
    steps = sorted(set.intersection(*map(set, by_step)))
    x = np.array([column([lines[s] for s in steps], key) for lines in by_step])
    y = np.array([column([lines[s] for s in steps], _BITS) for lines in by_step])
    spread = y.std(axis=0, ddof=1) if len(runs) > 1 else None
    return Curve(arm, x.mean(axis=0), y.mean(axis=0), "points", spread)


def _study_rows(arms: Mapping[str, Sequence[Summary]]) -> Table:
    rows = [
        [
            arm,
            str(len(runs)),
            _spread([run.bits_per_byte for run in runs], lambda value: show.decimal(value, 4)),
            _spread([run.seconds for run in runs], show.seconds),
            _spread([run.dense_flops for run in runs], show.flops),
            _spread([run.counted_flops for run in runs], show.flops),
            _spread([run.sentiment for run in runs], show.percent),
        ]
        for arm, runs in arms.items()
    ]
    header = [
        "arm", "seeds", "final bits per byte", "seconds", "FLOPs dense", "FLOPs counted",
        "sentiment accuracy",
    ]  # fmt: skip
    return Table(header, rows)


def _spread(values: Sequence[float | None], write: Callable[[float | None], str]) -> str:
    """`mean ± deviation`; a dash unless every seed has the value."""
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return show.DASH
    deviation = statistics.stdev(present) if len(present) > 1 else None
    return f"{write(statistics.fmean(present))} ± {write(deviation)}"
