"""What the page asks for: where every run stands, and what is new in the curves of one."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.watch.folders import Run, find_runs
from pipeline.watch.follow import Follower
from pipeline.watch.overview import overview

_SEARCH_EVERY_S = 2.0


class Watched:
    """The runs below some folders, and what has been read of them so far."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._lock = threading.Lock()
        self._followers: dict[str, Follower] = {}
        self._runs: dict[str, Run] = {}
        self._searched = float("-inf")

    def list_runs(self) -> dict[str, Any]:
        """Where every run stands."""
        now = time.time()
        with self._lock:
            return {"now": now, "runs": [overview(run, now) for run in self._find().values()]}

    def curves(self, run_id: str, known: dict[str, tuple[int, int]]) -> dict[str, Any] | None:
        """What is new in the curves of a run; None when there is no such run.

        `known` holds what the reader has: curve -> generation and full buckets.
        """
        with self._lock:
            run = self._find().get(run_id)
            if run is None:
                return None
            if run_id not in self._followers:
                self._followers[run_id] = Follower(run)
            follower = self._followers[run_id]
            complete = follower.read()
            news = {
                name: found
                for name, series in follower.series.items()
                if (found := series.news(*known.get(name, (0, 0)))) is not None
            }
            return {"complete": complete, "curves": news}

    def _find(self) -> dict[str, Run]:
        if time.monotonic() - self._searched > _SEARCH_EVERY_S:
            self._runs = {run.id: run for run in find_runs(self._folders)}
            self._searched = time.monotonic()
        return self._runs
