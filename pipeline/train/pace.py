"""Who is slow: ranks that compute longer than the others, and ranks that wait for data.

A slow rank makes all ranks slow, because they meet in every step; what gives it away is the time
from the start of a step to the first meeting. Ranks exchange their sums when metrics are logged.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from statistics import median_low
from time import perf_counter
from typing import Any

import torch

from pipeline.ranks import gather_objects, rank

_STRAGGLES = 3.0  # times the median
_MATTERS = 0.1  # and by at least this share of the step time
_WAITS = 0.2  # share of the step time
_LINES_BETWEEN_WARNINGS = 100


@dataclass
class Paces:
    """Seconds of one rank in a log interval."""

    rank: int
    host: str
    step_s: float  # all steps, whole
    own_s: float  # before the first collective of each step
    data_wait_s: float  # of that, before its batch was there


class Pace:
    """Measures this rank; `exchange` compares all."""

    def __init__(self, device: torch.device, zero_stage: int) -> None:
        self._cuda = device.type == "cuda"
        # At ZeRO 3 the first layer already waits for weights of other ranks.
        self._forward_is_own = zero_stage < 3
        self._lines_to_next_warning = 0
        self._slow: set[int] = set()  # ranks, in the last interval
        self._restart()

    def _restart(self) -> None:
        self._began = 0.0
        self.own_s = self.data_wait_s = 0.0
        self._events: list[tuple[Any, Any]] = []

    def begin(self) -> None:
        """A step asks for its batch."""
        self._began = perf_counter()

    def loaded(self) -> None:
        """The batch is there."""
        waited = perf_counter() - self._began
        self.data_wait_s += waited
        if self._cuda:
            self.own_s += waited
            self._start = _event()
        elif not self._forward_is_own:
            self.own_s += waited

    def computed(self) -> None:
        """The first forward of a step is done, or under way on the device."""
        if not self._forward_is_own:
            return
        if self._cuda:
            self._events.append((self._start, _event()))
        else:
            self.own_s += perf_counter() - self._began

    def exchange(self, step_s: float) -> list[Paces]:
        """The interval of every rank, by rank; begins the next one. Collective."""
        if self._events:
            torch.cuda.synchronize()
            self.own_s += sum(start.elapsed_time(end) for start, end in self._events) / 1000
        mine = Paces(rank(), platform.node(), step_s, self.own_s, self.data_wait_s)
        self._restart()
        return [Paces(**paces) for paces in gather_objects(asdict(mine))]

    def warnings(self, paces: list[Paces]) -> list[str]:
        """What an interval says about ranks that are slow for the second time in a row, since
        anything may disturb one interval, and about data, at most every 100 intervals."""
        slow = stragglers(paces)
        found = [
            f"warning: {_named(p)} computes {p.own_s / usual:.1f} times as long as the other ranks "
            "before they meet: look at its clock rate, its temperature and who else uses the host"
            for p, usual in slow
            if p.rank in self._slow
        ]
        self._slow = {p.rank for p, _ in slow}
        self._lines_to_next_warning -= 1
        waiting = max(paces, key=lambda p: p.data_wait_s / p.step_s)
        share = waiting.data_wait_s / waiting.step_s
        if share > _WAITS and self._lines_to_next_warning <= 0:
            self._lines_to_next_warning = _LINES_BETWEEN_WARNINGS
            found.append(
                f"warning: {_named(waiting)} waits for data during {share:.0%} of its step time: "
                "the shards lie on a slow disk, or its processor cores are busy elsewhere"
            )
        return found


def stragglers(paces: list[Paces]) -> list[tuple[Paces, float]]:
    """Ranks that take three times the median before they meet the others, with that median."""
    # The lower one: of two ranks, one can be three times the other but never three times the mean.
    usual = max(median_low([p.own_s for p in paces]), 1e-9)
    return [
        (p, usual)
        for p in paces
        if p.own_s > _STRAGGLES * usual and p.own_s - usual > _MATTERS * p.step_s
    ]


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _named(paces: Paces) -> str:
    return f"rank {paces.rank} ({paces.host})"
