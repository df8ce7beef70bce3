"""Training a run on this rank to its end, or until a stop that a test asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def train(run: Any, stop: Callable[[], bool] | None = None) -> None:
    """Train `run`; when `stop` says so, on whichever rank, it is saved and left."""
    from data_prep.errors import StoppedAndSaved
    from pipeline.train import loop
    from pipeline.train.stop import STOP

    if stop is not None:
        run.stop.pending = lambda: STOP if stop() else 0
    try:
        loop.train(run)
    except StoppedAndSaved:
        pass
    run.loader.close()
    run.monitor.close()
