"""Sharpness-aware minimisation: the gradient is taken where the loss is worst nearby.

Foret et al. 2020 (arXiv 2010.01412), equation 2: w + rho g / |g| with the gradient g of the whole
batch; adaptive, each weight's step is in proportion to its size (Kwon et al. 2021, arXiv
2102.11600, equation 5).
"""

from __future__ import annotations

import math

from torch import Tensor

from pipeline.clock import Clock, StepResult
from pipeline.flops import Flops
from pipeline.protocols import Engine, StepPlugin


class SharpnessAware(StepPlugin):
    """Climbs by `rho` before the second pass over a batch, and comes back before the step."""

    name = "sam"
    passes = 2

    def __init__(self, rho: float, adaptive: bool) -> None:
        self._rho, self._adaptive = rho, adaptive
        self._left: dict[str, Tensor] = {}

    def second_pass(self, engine: Engine, clock: Clock) -> bool:
        directions, squared = {}, 0.0
        for name, parameter in engine.named_parameters():
            if parameter.requires_grad:
                directions[name] = engine.get_gradient(parameter)
                if self._adaptive:
                    directions[name] = directions[name] * engine.get_parameter(parameter).abs()
                squared += float(directions[name].double().square().sum())
        if not 0 < squared < math.inf:  # nowhere to climb, or a step that will be skipped
            return False
        for name, parameter in engine.named_parameters():
            if name in directions:
                weight = self._left[name] = engine.get_parameter(parameter)
                climb = directions[name] * weight.abs() if self._adaptive else directions[name]
                engine.set_parameter(parameter, weight + climb * (self._rho / math.sqrt(squared)))
        return True

    def after_backward(self, engine: Engine, clock: Clock) -> StepResult | None:
        for name, parameter in engine.named_parameters():
            if name in self._left:
                engine.set_parameter(parameter, self._left.pop(name))
        return None

    def count(self, clock: Clock, flops: Flops) -> Flops:
        return flops.times(2)
