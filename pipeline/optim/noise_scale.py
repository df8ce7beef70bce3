"""The gradient noise scale: the batch, in tokens, beyond which larger ones save few updates.

After McCandlish et al. 2018 (arXiv 1812.06162), section 2 and appendix A. The squared norm of a
gradient over b tokens is |G|^2 + S / b in expectation, so that its mean over micro-batches and that
of the whole batch of B tokens give |G|^2 and the trace S of the covariance; the scale is S / |G|^2.
Micro-batches are seen one by one, before anything is accumulated, reduced or sharded: so one device
with accumulation is enough, and the ZeRO stage does not matter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_prep.errors import RecipeError
from pipeline.clock import Clock, StepResult
from pipeline.protocols import Engine, StepPlugin
from pipeline.ranks import world_size
from pipeline.recipe.batch import BatchConfig


class Estimate(NamedTuple):
    """|G|^2 of the true gradient and the trace of the covariance of one token's."""

    gradient_squared: float
    trace: float


def estimate(small_squared: float, small: int, big_squared: float, big: int) -> Estimate:
    """From the mean squared norm over batches of `small` tokens and that of one of `big`."""
    return Estimate(
        (big * big_squared - small * small_squared) / (big - small),
        (small_squared - big_squared) / (1 / small - 1 / big),
    )


class NoiseScale(StepPlugin):
    """Looks at every `every`-th iteration; both parts are averaged before they are divided, by a
    decay of `decay` a look. RecipeError for a step of one micro-batch."""

    name = "noise_scale"

    def __init__(self, batch: BatchConfig, every: int, decay: float = 0.9):
        micro_tokens = batch.micro_batch * batch.window_tokens
        if batch.micro_batch >= batch.global_batch:
            raise RecipeError(
                f"optim.noise_every_steps compares micro-batches with the whole batch, and a step "
                f"has one micro-batch of {micro_tokens} tokens on one device: lower "
                "batch.micro_batch, or set optim.noise_every_steps=0"
            )
        self._batch, self._micro_tokens = batch, micro_tokens
        self._every, self._decay = every, decay
        self._looking = False
        self._squares: Tensor | None = None
        self._scale = 1.0
        # Weighted sums of both parts, and of the weights.
        self._sums = torch.zeros(3, dtype=torch.float64)

    def setup(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._see)

    def _see(self, gradient: Tensor) -> None:
        """A parameter's gradient of this micro-batch alone."""
        if self._looking:
            found = gradient.float().square().sum()
            self._squares = found if self._squares is None else self._squares + found

    def before_iteration(self, engine: Engine, clock: Clock) -> None:
        self._looking = clock.iteration % self._every == 0 and self._micro_batches(clock) > 1
        self._squares = None
        self._scale = engine.loss_scale * engine.world_size

    def after_step(self, engine: Engine, clock: Clock, result: StepResult) -> None:
        if not self._looking:
            return
        self._looking = False
        squares = self._squares
        assert squares is not None
        if world_size() > 1:
            dist.all_reduce(squares)
        norm = engine.grad_norm
        if result is not StepResult.APPLIED or norm is None:
            return
        # Each was divided by the tokens of the whole batch, as a share of its mean.
        batches = self._micro_batches(clock)
        small = float(squares) * batches / self._scale**2
        found = estimate(small, self._micro_tokens, norm**2, batches * self._micro_tokens)
        self._sums = self._decay * self._sums + (1 - self._decay) * torch.tensor([*found, 1.0])

    def _micro_batches(self, clock: Clock) -> int:
        """Of the step that `clock` stands before, over all ranks."""
        return self._batch.global_batch_at(clock.applied) // self._batch.micro_batch

    def metrics(self, clock: Clock) -> dict[str, float]:
        squared, trace, weight = self._sums.tolist()
        # After few looks noise may be larger than what it is in.
        if not weight or squared <= 0 or trace <= 0:
            return {}
        return {
            "noise/scale_tokens": trace / squared,
            "noise/gradient_squared": squared / weight,
            "noise/trace": trace / weight,
        }

    def plugin_state(self) -> dict[str, Tensor]:
        return {"sums": self._sums}

    def load_plugin_state(self, tensors: dict[str, Tensor]) -> None:
        # A checkpoint from before it was asked for has none.
        self._sums = tensors.get("sums", self._sums)
