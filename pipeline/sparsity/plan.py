"""The plan of a sparse run: phases as data, pure functions of the step.

Phases are measured in shares of the applied steps. The boundaries and densities of Hu et al. 2024
are not public; `mst` is a schedule of the same three parts whose average density of 0.25 uses about
a quarter of the dense FLOPs, and `solve` meets a given share exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from data_prep.errors import RecipeError
from pipeline.recipe.sparsity import MixedConfig


@dataclass(frozen=True)
class Phase:
    """What holds until `until`, a share of the run's steps."""

    name: str
    until: float
    density: float
    drop_fraction: float = 0.0
    sparse_attention: bool = False


@dataclass(frozen=True)
class Plan:
    """Phases in order, the last until 1; `gradient_share` of new connections grow by gradient."""

    phases: tuple[Phase, ...]
    gradient_share: float

    def lookup(self, applied: int, steps: int) -> tuple[int, float]:
        """The phase after `applied` of `steps` updates, and the share of it that has passed."""
        begin = 0
        for number, phase in enumerate(self.phases):
            end = round(phase.until * steps)
            if applied < end:
                return number, (applied - begin) / (end - begin)
            begin = end
        return len(self.phases) - 1, 1.0

    def drop_fraction(self, applied: int, steps: int) -> float:
        """Share of active weights to replace: a cosine from the phase's fraction to 0."""
        number, passed = self.lookup(applied, steps)
        return self.phases[number].drop_fraction / 2 * (1 + math.cos(math.pi * passed))

    def shares(self) -> list[tuple[Phase, float]]:
        """Every phase with its share of the run."""
        begins = [0.0, *(phase.until for phase in self.phases)]
        return [(p, p.until - b) for p, b in zip(self.phases, begins, strict=False)]

    @property
    def density(self) -> float:
        """Average over the run."""
        return sum(phase.density * share for phase, share in self.shares())


READY = {
    "mst": Plan(
        (
            Phase("warm-up", 0.1, 0.5, 0.3),
            Phase("ultra-sparse", 0.8, 0.1, 0.3, sparse_attention=True),
            Phase("regrowth", 0.9, 0.3, 0.3),
            Phase("restored", 1.0, 1.0),
        ),
        gradient_share=0.75,
    ),
    "rigl": Plan((Phase("evolving", 0.75, 0.2, 0.3), Phase("settled", 1.0, 0.2)), 1.0),
    "set": Plan((Phase("evolving", 0.75, 0.2, 0.3), Phase("settled", 1.0, 0.2)), 0.0),
    "static": Plan((Phase("static", 1.0, 0.2),), 0.0),
}


def build_plan(section: MixedConfig) -> Plan:
    """The section's phases, or those of the ready plan it names."""
    ready = READY[section.plan]
    phases = ready.phases
    if section.phases is not None:
        phases = tuple(
            Phase(p.name, p.until, p.density, p.drop_fraction, p.attention == "sparse")
            for p in section.phases
        )
    if section.attention is None:
        phases = tuple(replace(phase, sparse_attention=False) for phase in phases)
    share = ready.gradient_share if section.gradient_share is None else section.gradient_share
    return Plan(phases, share)


def solve(plan: Plan, target: float, share_of: Callable[[Plan], float]) -> Plan:
    """The plan with its lowest density moved so that `share_of(plan)` of the dense FLOPs is used.

    The count rises with that density. RecipeError when no density in (0, 1] meets the target.
    """
    low = min(phase.density for phase in plan.phases)

    def at(density: float) -> Plan:
        moved = (replace(p, density=density) if p.density == low else p for p in plan.phases)
        return replace(plan, phases=tuple(moved))

    least, most = share_of(at(0.0)), share_of(at(1.0))
    if not least < target <= most:
        raise RecipeError(
            f"sparsity.flops={target}: this plan can use {least:.3f} to {most:.3f} of the dense "
            "FLOPs by its lowest density alone: choose a share between them, shorten the denser "
            "phases, or set mask_head"
        )
    below, above = 0.0, 1.0
    while above - below > 1e-9:
        middle = (below + above) / 2
        below, above = (middle, above) if share_of(at(middle)) < target else (below, middle)
    return at(above)
