"""Advice on batch and rate from the noise that a run has measured: `python -m pipeline advise RUN`.

With noise scale N, a batch of B tokens needs 1 + N/B times the updates and 1 + B/N times the tokens
of the least possible, and the best rate grows as 1 / (1 + N/B) under SGD, under Adam as a power of
that between 1/2 and 1 (McCandlish et al. 2018, equations 2.6 and 2.11, appendix E.2).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.errors import DataError
from pipeline.report.load import RunData, column, read_config, read_run

_FAR = 4.0  # from this ratio on another batch is worth a word


def advise(folder: Path) -> str:
    """What the log of the run in `folder` says. DataError when it measured no noise."""
    config = read_config(folder)
    if config is None:
        raise DataError(f"{folder} is no run folder: no config.yaml; name one such as runs/demo")
    run = read_run(folder, config)
    noise = column(run.training, "noise/scale_tokens")
    noise = noise[~np.isnan(noise)]
    if not len(noise):
        raise DataError(
            f"{folder} measured no noise: train with optim.noise_every_steps=10, and a "
            "batch.micro_batch below batch.global_batch"
        )
    early, late = (float(np.median(part)) for part in (_third(noise, 0), _third(noise, -1)))
    return "\n".join(_lines(run, early, late))


def _third(values: np.ndarray, which: int) -> np.ndarray:
    return np.array_split(values, min(3, len(values)))[which]


def _lines(run: RunData, early: float, late: float) -> list[str]:
    section, optim = run.config["batch"], run.config["optim"]
    batch = section["global_batch"] * section["window_tokens"]
    micro = section["micro_batch"] * section["window_tokens"]
    rate = max(line["train/learning_rate"] for line in run.training)
    wanted = max(1, round(late / micro)) * micro
    lines = [
        f"noise scale      {early:,.0f} tokens in the first third of the run, "
        f"{late:,.0f} in the last",
        f"this batch       {batch:,} tokens: {1 + late / batch:.2f} times the updates and "
        f"{1 + batch / late:.2f} times the tokens of the least possible",
    ]
    if batch / _FAR < wanted < batch * _FAR:
        return [*lines, "advice           keep this batch: it is near the noise scale"]
    growth = (1 + late / batch) / (1 + late / wanted)
    low, high = sorted((rate * growth**0.5, rate * growth))
    word = "larger" if wanted > batch else "smaller"
    rows = wanted // section["window_tokens"]
    lines += [
        f"advice           a {word} batch: batch.global_batch={rows} ({wanted:,} tokens), near the "
        "noise scale, where both cost twice the least",
        f"                 peak rate between {low:.3g} and {high:.3g} (this run's was {rate:.3g}); "
        "try both ends, and the lower first",
    ]
    if wanted > batch and early < late / _FAR:
        lines.append(
            f"                 early in the run {early:,.0f} tokens would do: warm up for longer"
        )
    if optim["warmup_steps"] and wanted != batch:
        lines.append("                 keep the warm-up's length in tokens: optim.warmup_tokens")
    return lines
