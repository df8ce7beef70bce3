"""Large batches by rule: the batch ladder, warm-ups, noise scale and precision, at equal bytes.

    python benchmarks/large_batch.py [--quick] [--json FILE] [--folder runs/large_batch]

A byte-level mLSTM of 128 units and a Transformer of 2 layers of 128 on Amazon reviews (the embedded
ones where corpora/ is not there), 1 MiB an arm; about an hour of one core. Every arm is a run of a
study under the folder: started again, the command skips what is done. Writes results.json, tables
and pictures into the folder.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Row, options, report, row
from benchmarks.ladder.arms import Scale, Study, corpus
from benchmarks.ladder.page import document
from benchmarks.ladder.precision import precisions
from benchmarks.ladder.rates import ladder
from benchmarks.ladder.warmup import warmups
from pipeline.report.save import save
from pipeline.run_folder import RunFolder
from pipeline.stages.runner import run_stages

_ROOT = Path(__file__).parents[1]
_SGD_MODEL = "mlstm"  # three seeds of one model are what time allows


def full(folder: Path) -> Scale:
    """What docs/results.md tells of."""
    return Scale(
        folder, 2**20, factors=(1, 8, 64),
        rates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
        sgd_rates=(0.2, 0.4, 0.8, 1.6, 3.2, 6.4), seeds=(1, 2, 3),
    )  # fmt: skip


def quick(folder: Path) -> Scale:
    """The same paths through the code."""
    return Scale(
        folder, 2**16, factors=(1, 8), rates=(4e-3,), sgd_rates=(0.8,), seeds=(1,),
        rungs=((1.0, 1),), doublings=0, models=(_SGD_MODEL,), evaluates=False,
    )  # fmt: skip


def study_all(scale: Scale) -> dict[str, Any]:
    """Every part, in the order of what depends on it; written down after each."""
    found: dict[str, Any] = {"bytes": scale.total_bytes, "ladder": {}, "precision": {}}
    for model in scale.models:
        found["ladder"][model] = ladder(model, scale)
        write(scale.folder, found)
    found["warmup"] = warmups(_SGD_MODEL, scale)
    for model in scale.models:
        write(scale.folder, found)
        rate = found["ladder"][model]["batches"][scale.factors[1]]["best"]["rate"]
        found["precision"][model] = precisions(model, scale, rate)
    write(scale.folder, found)
    return found


def write(folder: Path, found: dict[str, Any]) -> None:
    """results.json, and a page of tables and pictures."""
    RunFolder(folder).write_json(folder / "results.json", found)
    save(document(found), folder / "results.html", folder / "results.md")


def rows_of(found: dict[str, Any]) -> list[Row]:
    """Large batches beside the small one, and bf16 beside fp32."""
    rows = []
    for model, rungs in found["ladder"].items():
        small = rungs["batches"][1]["best"]["bits"]
        for factor, rung in rungs["batches"].items():
            ends = {"best": rung["best"]} | (rung["rules"] if factor > 1 else {})
            for name, end in ends.items():
                rows.append(_against(f"ladder {model} x{factor} {name}", [end["bits"]], small))
    small = next(iter(found["warmup"]["arms"].values()))["mean"]
    for name, arm in found["warmup"]["arms"].items():
        rows.append(_against(f"warmup {name}", arm["bits"], small))
    for model, dtypes in found["precision"].items():
        case, fp32, bf16 = f"precision {model}", dtypes["fp32"], dtypes["bf16"]
        rows.append(row(case, "bytes/s", bf16["bytes_per_s"], fp32["bytes_per_s"], "fp32"))
        memory = (part["grown_bytes"] / 1e6 for part in (bf16, fp32))
        rows.append(row(case, "MB grown", *memory, "fp32", True))
        gap = max(abs(a - b) for a, b in zip(bf16["bits"], fp32["bits"], strict=True))
        rows.append(Row(case, "gap, bits per byte", gap, 0.01, "bar", None))
    return rows


def _against(case: str, bits: list[float], small: float) -> Row:
    """The mean over seeds beside the small batch, or how many of them diverged."""
    diverged = sum(map(math.isinf, bits))
    if diverged:
        return row(case, f"of {len(bits)} seeds diverged", diverged)
    return row(case, "bits per byte", statistics.fmean(bits), small, "small batch", True)


def main() -> None:
    """Run all, or go on with it."""
    parser = options(__doc__ or "")
    parser.add_argument("--folder", type=Path, default=Path("runs/large_batch"))
    arguments = parser.parse_args()
    os.chdir(_ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if corpus():
        print("corpora/ has no Amazon reviews: on the embedded sample, recipes/data/README.md")
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            found = run(quick(Path(folder)))
    else:
        found = run(full(arguments.folder))
    report(rows_of(found), arguments.json)


def run(scale: Scale) -> dict[str, Any]:
    """Prepare the data, which all arms share, then train."""
    study = Study("data", scale.models[0], scale)
    run_stages(study.recipe(study.add("x1", 1)), ["prepare"])
    return study_all(scale)


if __name__ == "__main__":
    main()
