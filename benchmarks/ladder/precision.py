"""bf16 beside fp32 at the middle batch and its best rate: loss, speed, memory."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.ladder.arms import Scale, Study, train
from pipeline.run_folder import RunFolder

_DTYPES = ("fp32", "bf16")
_TURNS = range(101, 106)  # seeds of the short runs that are timed


def precisions(model: str, scale: Scale, rate: float) -> dict[str, Any]:
    """Train both over at most two seeds; then time them, and measure memory, in short turns."""
    study = Study(f"precision_{model}", model, scale)
    warmup = f"optim.warmup_tokens={scale.total_bytes // 32}"
    for dtype in _DTYPES:
        study.add(dtype, scale.factors[1], f"optim.lr={rate}", warmup, f"precision.dtype={dtype}")
    bits = {
        dtype: [train(study.recipe(dtype, seed)) for seed in scale.seeds[:2]] for dtype in _DTYPES
    }
    turns = _TURNS if scale.evaluates else _TURNS[:1]
    costs = [(dtype, _cost(study, dtype, turn)) for turn in turns for dtype in _DTYPES]
    study.write(list(_DTYPES), ["prepare", "pretrain"])
    return {
        dtype: {
            "bits": bits[dtype],
            "bytes_per_s": statistics.median(cost[0] for name, cost in costs if name == dtype),
            "grown_bytes": statistics.median(cost[1] for name, cost in costs if name == dtype),
        }
        for dtype in _DTYPES
    }


def _cost(study: Study, dtype: str, seed: int) -> tuple[float, float]:
    """Bytes a second of a sixteenth of a run, and the memory that it took."""
    recipe = study.recipe(dtype, seed, share=1 / 16)
    train(recipe)
    folder = RunFolder(recipe.run_folder)
    lines = [line for line in folder.read_metrics() if "train/loss" in line]
    speed = statistics.median(line["perf/tokens_per_sec"] for line in lines)
    return speed, (folder.read_json(folder.root / "memory.json") or {})["grown_bytes"]
