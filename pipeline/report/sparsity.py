"""What sparse training did, phase by phase: counted FLOPs, active weights, measured seconds."""

from __future__ import annotations

import numpy as np

from data_prep.recipe.loader import validate
from pipeline.recipe.sparsity import MixedConfig
from pipeline.report import numbers as show
from pipeline.report.document import Block, Paragraph, Section, Table
from pipeline.report.figures import STEPS, Axis, Curve, draw
from pipeline.report.load import Lines, RunData, column
from pipeline.sparsity.plan import build_plan

_SUMS = ("train/tokens", "flops/dense", "flops/counted", "time/train_s")


def sparsity_section(run: RunData, max_points: int) -> Section:
    """Empty for a dense run."""
    settings = run.setting("sparsity") or {}
    if settings.get("kind") != "mixed":
        return Section("Sparsity", [])
    plan = build_plan(validate(MixedConfig, settings, "sparsity"))
    lines = [line for line in run.training if "sparsity/phase" in line]
    rows, before = [], dict.fromkeys(_SUMS, 0.0)
    for number, phase in enumerate(plan.phases):
        within = [line for line in lines if line["sparsity/phase"] == number]
        if not within:
            continue
        attention = "sparse" if phase.sparse_attention else "dense"
        rows.append([phase.name, attention, *_row(within, before)])
        before = {key: within[-1][key] for key in _SUMS}
    header = ["phase", "attention", "last step", "density", "active weights", "tokens",
              "FLOPs counted", "of dense", "seconds", "seconds per million tokens"]  # fmt: skip
    blocks: list[Block] = [Table(header, rows, words=2), _parts(run)]
    steps = column(lines, "step")
    picture = draw(
        "density", "Active share of the masked weights", STEPS, Axis("density (0 to 1)", zero=True),
        [Curve("density", steps, column(lines, "sparsity/density"))], max_points,
    )  # fmt: skip
    note = (
        "Counted FLOPs leave out what is not active; seconds are what the same phase took here. "
        "A phase ends with the last logged step in it."
    )
    blocks += [block for block in (picture, Paragraph(note)) if block is not None]
    return Section("Sparsity", blocks)


def _row(within: Lines, before: dict[str, float]) -> list[str]:
    """Of a phase: what its last line has beyond what was there `before` it."""
    last = within[-1]
    tokens, dense, counted, seconds = (last[key] - before[key] for key in _SUMS)
    density = column(within, "sparsity/density")
    return [
        show.count(last["step"]),
        show.decimal(float(np.median(density)), 3),
        show.count(float(np.median(column(within, "sparsity/active_weights")))),
        show.count(tokens),
        show.flops(counted),
        show.percent(counted / dense if dense else None),
        show.seconds(seconds),
        show.seconds(seconds / tokens * 1e6 if tokens else None),
    ]


def _parts(run: RunData) -> Table:
    """The counted FLOPs of the run by where they were spent."""
    counted = run.last("flops/counted")
    parts = [(name, run.last(f"flops/{name}")) for name in ("blocks", "attention", "head")]
    rows = [
        [name, show.flops(value), show.percent(value / counted if value and counted else None)]
        for name, value in parts
    ]
    return Table(["part", "FLOPs counted", "share"], rows)
