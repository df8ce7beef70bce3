"""metrics.jsonl of one run, read on from where it was left."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

from pipeline.watch.folders import Run, open_file
from pipeline.watch.series import Series

PLACES = ("step", "train/tokens", "time/train_s")
# Name of the curve -> metric, and what it is divided by.
CURVES = {
    "loss": ("train/loss", 1.0),
    "loss_heldout": ("eval/loss", 1.0),
    "bits": ("train/loss_per_byte", math.log(2)),
    "bits_heldout": ("eval/bits_per_byte", 1.0),
    "rate": ("train/learning_rate", 1.0),
    "speed": ("perf/tokens_per_sec", 1.0),
    "norm": ("train/grad_norm", 1.0),
}
_BYTES_AT_ONCE = 16 * 2**20  # a long log is shown in parts rather than late


class Follower:
    """The curves of a run. A line counts once it ends; one that is no JSON is passed over."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._begin()

    def _begin(self) -> None:
        self.series = {name: Series() for name in CURVES}
        self.offset = 0  # bytes read
        self._last = b""  # the line that ends there

    def read(self) -> bool:
        """Take in what was written since, at most 16 MiB; False when more is waiting.

        A resumed run replaces the file by a shorter one: the last line read is then no longer
        where it was, and everything is read again.
        """
        file = open_file(self._run, "metrics.jsonl")
        if file is None:
            if self.offset:
                self._begin()
            return True
        with file:
            file.seek(self.offset - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._begin()
                file.seek(0)
            return self._take(file)

    def _take(self, file: BinaryIO) -> bool:
        end = self.offset + _BYTES_AT_ONCE
        while self.offset < end:
            line = file.readline()
            if not line.endswith(b"\n"):
                return True
            self.offset += len(line)
            self._last = line
            self._add(parse(line))
        return False

    def _add(self, line: Mapping[str, Any]) -> None:
        place = tuple(number(line.get(key)) for key in PLACES)
        for name, (metric, divisor) in CURVES.items():
            value = number(line.get(metric))
            if value is not None:
                self.series[name].add(place, value / divisor)


_LARGEST = sys.float_info.max  # JSON has integers beyond it


def parse(line: bytes) -> Mapping[str, Any]:
    """A line of metrics; empty for anything else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > _LARGEST:
        return None
    return value if math.isfinite(value) else None
