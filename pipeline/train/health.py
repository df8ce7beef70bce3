"""How a run is doing, from numbers that are equal on all ranks: losses, and how steps ended.

Pure state without a policy; what is done about it is in `pipeline/train/policy.py`.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from pipeline.clock import StepResult

# Below this share of the mean, a deviation is rounding: a loss that stands still is no alarm.
_LEAST_DEVIATION = 1e-3


class Health:
    """The last applied losses, and how many steps in a row were of no use.

    A loss is compared with the mean and the standard deviation of a window of applied losses; the
    default, six deviations over 128 steps, is that of OLMo-core's SkipStepOptimizer.
    """

    def __init__(self, window_steps: int) -> None:
        self.losses: deque[float] = deque(maxlen=window_steps)
        self.useless_in_a_row = 0
        self._phases: list[int] = []
        self.saved_at = 0  # instances of the newest checkpoint: a rollback leads there

    def deviations(self, loss: float) -> float:
        """By how many standard deviations `loss` exceeds the window's mean; 0 while it fills."""
        count = len(self.losses)
        if count < (self.losses.maxlen or 0):
            return 0.0
        mean = math.fsum(self.losses) / count
        variance = math.fsum((x - mean) ** 2 for x in self.losses) / count
        return (loss - mean) / max(math.sqrt(variance), _LEAST_DEVIATION * abs(mean), 1e-12)

    def enter(self, phases: list[int]) -> None:
        """Head and plug-ins are in these phases: the losses of others are no measure for theirs."""
        if phases != self._phases:
            self.losses.clear()
            self._phases = phases

    def count(self, result: StepResult, loss: float) -> None:
        """A step whose batch was computed has ended so."""
        useless = result in (StepResult.OVERFLOW, StepResult.SKIPPED)
        self.useless_in_a_row = self.useless_in_a_row + 1 if useless else 0
        if result is StepResult.APPLIED:
            self.losses.append(loss)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        return {"losses": list(self.losses), "phases": self._phases}

    def load_state(self, state: dict[str, Any], instances: int) -> None:
        """Go on from the checkpoint at `instances`."""
        self.losses.extend(state["losses"])
        self._phases = state.get("phases", self._phases)
        self.saved_at = instances
