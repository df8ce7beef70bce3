"""One head after the other over the same output matrix, by shares of the run.

Such as a Taylor loss first, whose cost is free of the vocabulary, and softmax for the end, as dense
training ends a sparse one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pipeline.clock import Clock, StepResult
from pipeline.protocols import Engine, Head


class PhasedHead(Head):
    """`phases`: (share of `steps` at which it ends, head), in order, the last until 1."""

    def __init__(self, phases: Sequence[tuple[float, Head]], steps: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(head for _, head in phases)
        self.ends = [round(until * steps) for until, _ in phases]
        self.phase = 0

    @property
    def active(self) -> Head:
        head = self.heads[self.phase]
        assert isinstance(head, Head)
        return head

    @property
    def has_probabilities(self) -> bool:  # type: ignore[override]
        return self.active.has_probabilities

    def bind(self, output_weight: Tensor | None, output_bias: Tensor | None = None) -> None:
        for head in self._heads():
            head.bind(output_weight, output_bias)

    def begin_step(self, clock: Clock) -> None:
        last = len(self.ends) - 1
        self.phase = next((i for i, end in enumerate(self.ends) if clock.applied < end), last)
        self.active.begin_step(clock)

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return self.active(hidden, targets, weights)  # called: ZeRO-3 gathers for calls

    def log_prob(self, hidden: Tensor) -> Tensor:
        return self.active.log_prob(hidden)

    def scores(self, logits: Tensor) -> Tensor:
        return self.active.scores(logits)

    def export_settings(self) -> dict[str, Any]:
        return self.active.export_settings()

    def topk(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return self.active.topk(hidden, k)

    def finish_accumulation(self, engine: Engine) -> None:
        self.active.finish_accumulation(engine)

    def after_step(self, result: StepResult) -> None:
        # All of them: what one keeps about the matrix is out of date when another moved it.
        for head in self._heads():
            head.after_step(result)

    def flops(self, clock: Clock) -> float:
        return self.active.flops(clock)

    def dense_flops(self) -> float:
        return self.active.dense_flops()

    def _heads(self) -> list[Head]:
        return [head for head in self.heads if isinstance(head, Head)]
