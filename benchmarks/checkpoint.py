"""Saving and verifying the full state of GPT-2 124M: how long training stands still.

    python benchmarks/checkpoint.py [--quick] [--json FILE]

Weights and Adam's two moments in fp32, 1.5 GB, at ZeRO 0 on a processor. Ours is a run's own save:
the copy in memory, and the publishing once a thread has written it; training goes on in between.
Peer in the same run: `save_checkpoint` of the same DeepSpeed engine, whose time is all pause.
Verifying is hashing every file of the checkpoint, beside reading the same files from the disk, both
after the system has forgotten them. `--quick` saves a small model.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpt2 import Case, prepare
from benchmarks.harness import Row, interleaved, options, report, row
from pipeline.environment import free_port, prepare_environment

_ROOT = Path(__file__).parents[1]
_CHUNK = 1 << 24
# Short windows: what is measured does not depend on them, and a step in between is quick.
_SHORT = ["batch.global_batch=1", "batch.micro_batch=1", "batch.window_tokens=32",
          "engine.zero_stage=0", "engine.compile=false", "precision.dtype=fp32",
          "checkpoint.keep_last=1"]  # fmt: skip
_SMALL = ["model.config.n_layer=2", "model.config.n_embd=192", "model.config.n_head=2"]


def arms(run: Any, folder: Path) -> dict[str, Callable[[], float]]:
    """Seconds for which training stands still, of either way to save."""
    from pipeline.train.loop import train_step

    def step() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            train_step(run)

    def ours() -> float:
        step()
        began = time.perf_counter()
        run.saver.save()
        paused = time.perf_counter() - began
        while run.saver.writing:
            step()
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            run.saver.finish()
        return paused + time.perf_counter() - began

    def theirs() -> float:
        step()
        began = time.perf_counter()
        run.engine._ds.save_checkpoint(str(folder / "deepspeed"), tag="newest")
        return time.perf_counter() - began

    return {"ours": ours, "deepspeed": theirs}


def verifying(checkpoint: Path) -> dict[str, Callable[[], float]]:
    """GB/s of hashing a checkpoint, and of reading it."""
    from pipeline.train.checkpoint import problem

    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)

    def forget() -> None:
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def rate(work: Callable[[], object]) -> float:
        forget()
        began = time.perf_counter()
        work()
        return size / (time.perf_counter() - began) / 1e9

    def read() -> None:
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.read(_CHUNK):
                    pass

    def verify() -> None:
        assert problem(checkpoint) is None

    return {"ours": lambda: rate(verify), "disk-read": lambda: rate(read)}


def measure(folder: Path, quick: bool) -> list[Row]:
    """Both rows."""
    from pipeline.models.build import parameter_count
    from pipeline.recipe import load_recipe
    from pipeline.train.checkpoint import find_checkpoint
    from pipeline.train.engine import init_distributed
    from pipeline.train.start import start_run

    case = Case(quick, 1, 1)
    recipe = prepare(case, folder, None, compiled=False)
    with contextlib.redirect_stdout(io.StringIO()):
        init_distributed(2)
        run = start_run(load_recipe(recipe, [*_SHORT, *(_SMALL if quick else [])]))
    rounds = 3 if quick else 5
    name = f"{parameter_count(run.module) / 1e6:.0f}M"
    pause = interleaved(arms(run, folder), rounds)
    shutil.rmtree(folder / "deepspeed")
    found = interleaved(verifying(find_checkpoint(run.folder.checkpoints)), rounds)
    run.close()
    return [
        row(f"checkpoint save {name}", "s of pause", pause["ours"], pause["deepspeed"],
            "deepspeed", lower_is_better=True),
        row(f"checkpoint verify {name}", "GB/s", found["ours"], found["disk-read"], "disk-read"),
    ]  # fmt: skip


def main() -> None:
    """Measure in a temporary folder of the current one, on the disk that runs use."""
    arguments = options(__doc__ or "").parse_args()
    prepare_environment()
    os.environ["MASTER_PORT"] = free_port()
    os.chdir(_ROOT)  # where the DeepSpeed templates lie
    with tempfile.TemporaryDirectory(dir=_ROOT) as folder:
        rows = measure(Path(folder), arguments.quick)
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
