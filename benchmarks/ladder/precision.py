"""bf16 beside fp32 at the middle batch and its best rate: loss, speed, memory."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.ladder.arms import Scale, Study, train
from pipeline.run_folder import RunFolder

_DTYPES = ("fp32", "bf16")


def precisions(model: str, scale: Scale, rate: float) -> dict[str, Any]:
    """Train both over at most two seeds, in turns."""
    study = Study(f"precision_{model}", model, scale)
    warmup = f"optim.warmup_tokens={scale.total_bytes // 32}"
    for dtype in _DTYPES:
        study.add(dtype, scale.factors[1], f"optim.lr={rate}", warmup, f"precision.dtype={dtype}")
    seeds = scale.seeds[:2]
    bits: dict[str, list[float]] = {dtype: [] for dtype in _DTYPES}
    for seed in seeds:
        for dtype in _DTYPES:
            bits[dtype].append(train(study.recipe(dtype, seed)))
    study.write(list(_DTYPES), ["prepare", "pretrain"])
    return {dtype: {"bits": bits[dtype], **_cost(study, dtype, seeds)} for dtype in _DTYPES}


def _cost(study: Study, dtype: str, seeds: tuple[int, ...]) -> dict[str, float]:
    """Median speed of all logged stretches, and the memory that training took."""
    speeds, memory = [], []
    for seed in seeds:
        folder = RunFolder(study.recipe(dtype, seed).run_folder)
        lines = folder.read_metrics()
        speeds += [line["perf/tokens_per_sec"] for line in lines if "train/loss" in line]
        memory.append((folder.read_json(folder.root / "memory.json") or {})["grown_bytes"])
    return {"bytes_per_s": statistics.median(speeds), "grown_bytes": statistics.median(memory)}
