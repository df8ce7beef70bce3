"""Going back: the ranges of instances that a run has learnt to pass over.

`runs/NAME/skip_instances.json` is a list of {first, end, step, reason}, one for each rollback. It
lies outside the checkpoints, because the checkpoint that a run goes back to is older than the entry
(Chowdhery et al. 2022, PaLM, section 5.1: restart before the spike, skip the batches around it).
"""

from __future__ import annotations

from typing import Any

from pipeline.run_folder import RunFolder


def read_rollbacks(folder: RunFolder) -> list[dict[str, Any]]:
    """The entries so far, oldest first."""
    return folder.read_json(folder.skip_instances) or []


def skipped_ranges(folder: RunFolder) -> list[tuple[int, int]]:
    """Instances [first, end) that earlier rollbacks pass over."""
    return [(entry["first"], entry["end"]) for entry in read_rollbacks(folder)]


def add_rollback(folder: RunFolder, instances: tuple[int, int], step: int, reason: str) -> None:
    """Record one more range to pass over. One rank only."""
    first, end = instances
    entry = {"first": first, "end": end, "step": step, "reason": reason}
    folder.write_json(folder.skip_instances, [*read_rollbacks(folder), entry])
