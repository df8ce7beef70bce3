"""The clock of a run: three integers that say where training stands.

They move at different speeds on purpose. `instances` is the data position and moves with every
global batch, `iteration` counts every global batch tried, `applied` counts optimizer updates.
Schedules read `applied`; data and lane states follow `instances`; topology updates of sparse
training are keyed on `iteration`, so that a skipped optimizer step can never stall them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum


class StepResult(str, Enum):
    """How one global batch ended."""

    APPLIED = "applied"  # the optimizer moved the weights
    OVERFLOW = "overflow"  # a non-finite loss or gradient: nothing was applied
    TOPOLOGY = "topology"  # a plug-in used the gradients to change masks instead of weights
    SKIPPED = "skipped"  # the batch is on the list of windows to skip: it was not computed


@dataclass
class Clock:
    """Position of a run. Saved in every checkpoint, restored on resume."""

    iteration: int = 0
    instances: int = 0
    applied: int = 0

    def advance(self, result: StepResult, global_batch: int) -> None:
        """Move past one global batch of `global_batch` instances that ended as `result`."""
        self.iteration += 1
        self.instances += global_batch
        if result is StepResult.APPLIED:
            self.applied += 1

    def to_dict(self) -> dict[str, int]:
        return asdict(self)
