"""The `watch` section: what a run looks out for in itself, and what it does then."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_prep.recipe.section import Section


class WatchConfig(Section):
    """See docs/reliability.md."""

    hang_minutes: float = Field(
        default=20,
        gt=0,
        description="a rank where nothing has moved for so long names those it waits for and "
        "leaves with 1; longer than the longest save or kernel build, three times as long before "
        "the first step is done",
    )
    nonfinite: Literal["skip", "rollback", "stop"] = Field(
        default="skip",
        description="a loss or gradient that is no number (under fp16, a loss): skip the batch; "
        "rollback: leave with 75 and go on from the last checkpoint past it; stop: leave with 4",
    )
    spike: Literal["off", "warn", "skip", "rollback", "stop"] = Field(
        default="warn", description="the same for a loss far above those before it"
    )
    spike_sigma: float = Field(
        default=6, gt=0, description="a spike is so many standard deviations above their mean"
    )
    spike_window_steps: int = Field(
        default=128, ge=4, description="applied losses that it is compared with; fewer, no verdict"
    )
    rollback_batches: int = Field(
        default=20, ge=0, description="global batches before it that are passed over as well"
    )
    max_rollbacks: int = Field(
        default=3, ge=1, description="of a run folder; the next is a stop with 4"
    )
    replicas_every_steps: int = Field(
        default=100, ge=0,
        description="ZeRO 0 to 2: compare the weights of all ranks, bit by bit, every so many "
        "applied steps and at the end; a difference is a stop with 4; 0 = off",
    )  # fmt: skip

    @property
    def rolls_back(self) -> bool:
        return "rollback" in (self.nonfinite, self.spike)
