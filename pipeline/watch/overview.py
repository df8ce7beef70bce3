"""Where a run stands, from its recipe, its status and the end of its metrics."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import yaml

from pipeline.watch.folders import Run, open_file
from pipeline.watch.follow import number, parse

_END_BYTES = 64 * 2**10  # some hundred lines
_SILENT_AFTER_S = 120.0  # or after ten times the usual wait between two lines
_LARGEST_BYTES = 2**20  # of a recipe or a status


def overview(run: Run, now: float) -> dict[str, Any]:
    """A row of the list; `now` and `last_write` in seconds since 1970. Unknown numbers are None.

    `state` is what status.json says when it was written after the metrics; else `starting`,
    `running`, or `silent` when no line has come for long.
    """
    lines, written = _end(run)
    training = [line for line in lines if "train/loss" in line]
    last = training[-1] if training else {}
    heldout = [line for line in lines if "eval/bits_per_byte" in line]
    status, ended = _status(run)
    steps = _planned_steps(run)
    step_s, wait_s = _paces(training)
    if ended and ended >= written:
        state = str(status.get("state", "ended"))
    elif not written:
        state = "starting"
    else:
        state = "running" if now - written < max(_SILENT_AFTER_S, 10 * wait_s) else "silent"
    step = number(last.get("step"))
    left_s = None
    if state == "running" and step is not None and steps is not None and step_s is not None:
        left_s = (steps - step) * step_s
    return {
        "id": run.id,
        "name": run.name,
        "state": state,
        "reason": str(status.get("reason") or "") if ended >= written else "",
        "step": step,
        "steps": steps,
        "eta_s": left_s,
        "loss": number(last.get("train/loss")),
        "bits_per_byte": number(heldout[-1]["eval/bits_per_byte"]) if heldout else None,
        "tokens_per_s": number(last.get("perf/tokens_per_sec")),
        "last_write": max(written, ended) or None,
    }


def _end(run: Run) -> tuple[list[Mapping[str, Any]], float]:
    """The last whole lines of the metrics, and when the file was written; 0 without one."""
    file = open_file(run, "metrics.jsonl")
    if file is None:
        return [], 0.0
    with file:
        found = os.fstat(file.fileno())
        file.seek(max(0, found.st_size - _END_BYTES))
        begins_inside = file.tell() > 0
        lines = file.read().split(b"\n")
    return [parse(line) for line in lines[begins_inside:-1]], found.st_mtime


def _status(run: Run) -> tuple[dict[str, Any], float]:
    """status.json and when it was written; 0 without one."""
    file = open_file(run, "status.json")
    if file is None:
        return {}, 0.0
    with file:
        return dict(parse(file.read(_LARGEST_BYTES))), os.fstat(file.fileno()).st_mtime


def _planned_steps(run: Run) -> int | None:
    file = open_file(run, "config.yaml")
    if file is None:
        return None
    with file:
        return _steps_in(file.read(_LARGEST_BYTES))


@lru_cache(maxsize=1024)
def _steps_in(recipe: bytes) -> int | None:
    try:
        return int(yaml.safe_load(recipe)["run"]["steps"])
    except (yaml.YAMLError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _paces(training: Sequence[Mapping[str, Any]]) -> tuple[float | None, float]:
    """Seconds of training a step and between two lines, over the lines given."""
    timed = [
        (line["step"], line["time/train_s"])
        for line in training
        if number(line.get("step")) is not None and number(line.get("time/train_s")) is not None
    ]
    if len(timed) < 2 or timed[-1][0] <= timed[0][0]:
        return None, 0.0
    (first, began), (last, ended) = timed[0], timed[-1]
    return (ended - began) / (last - first), (ended - began) / (len(timed) - 1)
