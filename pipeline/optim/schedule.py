"""The learning rate as a pure function of applied steps."""

from __future__ import annotations

import math

from pipeline.recipe.optim import OptimConfig


def learning_rate(section: OptimConfig, applied: int, run_steps: int) -> float:
    """The rate of the update after `applied` updates: linear warm-up, then the decay.

    The first update of a warm-up of W steps has rate lr / W, the W-th has lr. The decay runs from
    the end of the warm-up to `decay_steps` (default: the run's length), then stays where it is.
    """
    if applied < section.warmup_steps:
        return section.lr * (applied + 1) / section.warmup_steps
    horizon = section.decay_steps or run_steps
    span = max(horizon - section.warmup_steps, 1)
    t = min((applied - section.warmup_steps) / span, 1.0)
    if section.decay == "none":
        return section.lr
    shape = 1 - t if section.decay == "linear" else 0.5 * (1 + math.cos(math.pi * t))
    return section.lr * (section.final_lr_share + (1 - section.final_lr_share) * shape)
