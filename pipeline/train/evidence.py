"""What was known when a run gave up a step: runs/NAME/logs/evidence-stepN.json."""

from __future__ import annotations

import math
import platform
from pathlib import Path
from typing import Any

from pipeline.ranks import from_rank0, gather_objects, rank
from pipeline.train.run import TrainingRun


def write_evidence(run: TrainingRun, reason: str, **extra: Any) -> Path:
    """Losses, position and what every rank saw of the batch at hand. Collective."""
    ranks = gather_objects({"rank": rank(), "host": platform.node(), "loss": _plain(run.own_loss)})
    path = run.folder.logs / f"evidence-step{run.clock.applied}.json"
    content = {
        "reason": reason,
        "clock": run.clock.to_dict(),
        "instances": list(run.instances),
        "loss": _plain(run.last_loss),
        "losses_before": list(run.health.losses),
        "learning_rate": run.engine.lr,
        "last_grad_norm": _plain(run.engine.grad_norm),
        "loss_scale": run.engine.loss_scale,
        "ranks": ranks,
        **extra,
    }
    return from_rank0(lambda: run.folder.write_json(path, content))


def _plain(number: float | None) -> float | str | None:
    """JSON has no word for a number that is none."""
    return number if number is None or math.isfinite(number) else str(number)
