"""The report of a long run, and what the live page sends of one.

    python benchmarks/report.py [--quick] [--json FILE]

A run folder is written with as many logged steps as named. `report` is the whole stage, figures,
HTML and Markdown; the peer writes the same report with every point drawn. CPU seconds say what it
takes where other work shares the machine. `watch` is one more line
of the log brought to a browser that has all before it; the peer reads the log again and sends every
point of the same curves.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import Row, interleaved, options, report, row  # noqa: E402
from pipeline.recipe import Recipe, load_recipe  # noqa: E402
from pipeline.report.stage import write_report  # noqa: E402
from pipeline.run_folder import RunFolder  # noqa: E402
from pipeline.watch.follow import CURVES, PLACES  # noqa: E402
from pipeline.watch.watched import Watched  # noqa: E402


def make_run(folder: Path, steps: int) -> Recipe:
    """A run that logged each of `steps`, and evaluated a hundred times."""
    recipe = load_recipe(
        ROOT / "recipes/demo_mlstm.yaml", [f"run.folder={folder}", f"run.steps={steps}"]
    )
    run = RunFolder(recipe.run_folder)
    run.root.mkdir(parents=True)
    run.config.write_text(recipe.to_yaml())
    draw = random.Random(1)
    with run.metrics.open("w") as file:
        for step in range(1, steps + 1):
            file.write(log_line(step, steps, draw))
            if step % max(1, steps // 100) == 0:
                file.write(json.dumps(position(step) | {
                    "eval/loss": 2.0, "eval/bits_per_byte": 2 + 10 / step, "eval/bpc": 2.9,
                }) + "\n")  # fmt: skip
    return recipe


def position(step: int) -> dict[str, Any]:
    return {
        "step": step, "iteration": step, "instances": 128 * step, "train/tokens": 8192 * step,
        "time/train_s": 0.3 * step, "flops/dense": 1e12 * step, "flops/counted": 1e12 * step,
    }  # fmt: skip


def log_line(step: int, steps: int, draw: random.Random) -> str:
    loss = 1 + 5 / math.sqrt(step) + draw.gauss(0, 0.05)
    return json.dumps(position(step) | {
        "result": "applied", "train/loss": loss, "train/loss_per_byte": loss, "train/bpc": loss,
        "train/ppl": math.exp(loss), "train/learning_rate": 1e-3 * (1 - step / steps),
        "train/grad_norm": math.exp(draw.gauss(0, 0.5)), "train/skipped_steps": 0,
        "train/epoch": step / steps, "batch/global_tokens": 8192,
        "perf/tokens_per_sec": draw.gauss(30_000, 500), "perf/data_wait_ms": 0.5,
        "perf/tokens_per_sec_per_gpu": 30_000, "perf/data_wait_share": 0.01,
        "flops/blocks": 1e12 * step, "flops/attention": 0, "flops/head": 1e11 * step,
    }) + "\n"  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def with_every_point(recipe: Recipe) -> Recipe:
    every = recipe.report.model_copy(update={"max_points": 10**9})
    return recipe.model_copy(update={"report": every})


def report_rows(recipe: Recipe, steps: int, rounds: int) -> list[Row]:
    spent: dict[str, list[float]] = {"ours": [], "every-point": []}

    def arm(name: str, made: Recipe) -> Callable[[], float]:
        def timed() -> float:
            began = process_time()
            wall = seconds(lambda: write_report(made))
            spent[name].append(process_time() - began)
            return wall

        return timed

    arms = {
        "ours": arm("ours", recipe),
        "every-point": arm("every-point", with_every_point(recipe)),
    }
    wall = interleaved(arms, rounds)
    cpu = {name: median(values[1:]) for name, values in spent.items()}  # the first warms up
    case = f"report of {steps:,} logged steps"
    return [
        row(case, unit, found["ours"], found["every-point"], "every-point", True)
        for unit, found in (("seconds", wall), ("CPU seconds", cpu))
    ]


class Page:
    """A browser's share: what it has, and the question it asks with."""

    def __init__(self, watched: Watched, run_id: str) -> None:
        self._watched, self._run_id = watched, run_id
        self._known: dict[str, tuple[int, int]] = {}

    def ask(self) -> int:
        """Bytes of the answer."""
        size, complete = 0, False
        while not complete:
            answer = self._watched.curves(self._run_id, self._known)
            assert answer is not None
            size += len(json.dumps(answer))
            complete = answer["complete"]
            for name, news in answer["curves"].items():
                self._known[name] = news["generation"], news["known"]
        return size


def send_again(run: RunFolder) -> int:
    """Bytes of all curves with every point, read anew."""
    lines = list(run.read_metrics())
    curves = {
        name: [[*(line[key] for key in PLACES), line[metric]] for line in lines if metric in line]
        for name, (metric, _) in CURVES.items()
    }
    return len(json.dumps(curves))


def watch_rows(recipe: Recipe, steps: int, rounds: int) -> list[Row]:
    run, draw = RunFolder(recipe.run_folder), random.Random(2)
    watched = Watched([run.root])
    page = Page(watched, watched.list_runs()["runs"][0]["id"])
    first = seconds(page.ask)

    def one_more(answer: Callable[[], int]) -> tuple[float, int]:
        with run.metrics.open("a") as file:
            file.write(log_line(steps, steps, draw))
        began = perf_counter()
        size = answer()
        return perf_counter() - began, size

    sizes: dict[str, int] = {}

    def arm(name: str, answer: Callable[[], int]) -> Callable[[], float]:
        def timed() -> float:
            spent, sizes[name] = one_more(answer)
            return 1000 * spent

        return timed

    found = interleaved(
        {"ours": arm("ours", page.ask), "again": arm("again", lambda: send_again(run))}, rounds
    )
    case = f"watch, a line more after {steps:,}"
    return [
        row(f"watch, first look at {steps:,} steps", "seconds", first),
        row(case, "ms", found["ours"], found["again"], "read-and-send-all", True),
        row(case, "kB sent", sizes["ours"] / 1e3, sizes["again"] / 1e3, "read-and-send-all", True),
    ]


def main() -> None:
    arguments = options(__doc__ or "").parse_args()
    steps, rounds = (20_000, 3) if arguments.quick else (100_000, 3)
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_run(Path(folder), steps)
        rows = report_rows(recipe, steps, rounds) + watch_rows(recipe, steps, rounds)
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
