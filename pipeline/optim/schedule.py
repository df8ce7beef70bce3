"""The learning rate as a pure function of applied steps: schedules move with updates, never with
data, so that a skipped step costs no rate (docs/large-batch.md)."""

from __future__ import annotations

import math

from pipeline.recipe.batch import BatchConfig
from pipeline.recipe.optim import OptimConfig


def learning_rate(section: OptimConfig, batch: BatchConfig, applied: int, run_steps: int) -> float:
    """The rate of the update after `applied` updates. Under `scaling` it follows a growing batch.

    A warm-up of W steps from zero has peak / W first and the peak last; from the reference rate it
    begins at that rate (Goyal et al. 2017, section 2.2). The decay ends at its horizon (default:
    the run's length), then the rate stays where it is. Cosine and linear begin after the warm-up;
    the points of `step` and `wsd` are shares of the horizon, warm-up included, as their sources
    have it.
    """
    peak = section.peak_lr(batch.global_batch_at(applied) * batch.window_tokens)
    warmup = section.warmup_length(batch)
    if applied < warmup:
        return _warmed(section, peak, applied, warmup)
    horizon = section.decay_length(batch, run_steps)
    begins = 0 if section.decay in ("step", "wsd") else warmup
    t = min((applied - begins) / max(horizon - begins, 1), 1.0)
    return peak * _left(section, t)


def _warmed(section: OptimConfig, peak: float, applied: int, warmup: int) -> float:
    if section.warmup == "zero":
        return peak * (applied + 1) / warmup
    reference = min(section.lr, peak)
    if section.warmup == "constant":
        return reference
    return reference + (peak - reference) * applied / warmup


def _left(section: OptimConfig, t: float) -> float:
    """Share of the peak after the share t of the decay."""
    if section.decay == "none":
        return 1.0
    if section.decay == "step":
        passed = sum(t >= at for at in section.decay_at)
        return max(section.decay_factor**passed, section.final_lr_share)
    shape = {
        "linear": 1 - t,
        "cosine": 0.5 * (1 + math.cos(math.pi * t)),
        "wsd": min(1.0, (1 - t) / section.decay_share),
    }[section.decay]
    return section.final_lr_share + (1 - section.final_lr_share) * shape
