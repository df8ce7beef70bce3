"""Mixed Sparsity Training as a step plug-in (Hu, Li, Wang, Huang 2024); RigL, SET and static masks
are plans of the same mechanism.

A masked weight is 0 in both of its copies, its gradient is masked before it is accumulated, and its
moments are 0: no optimizer moves it, and the forward pass needs no mask. One iteration in
`update_every` lets the whole gradient through, to score what is to grow.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_prep.errors import RecipeError
from pipeline.clock import Clock, StepResult
from pipeline.flops import Flops
from pipeline.protocols import Engine, StepPlugin
from pipeline.ranks import gather_objects
from pipeline.recipe.sparsity import MixedConfig
from pipeline.seeds import generator_for
from pipeline.sparsity.attention_switch import AttentionSwitch
from pipeline.sparsity.design import design
from pipeline.sparsity.executors import Executors
from pipeline.sparsity.matrices import Matrix
from pipeline.sparsity.plan import Phase
from pipeline.sparsity.topology import evolve, random_mask, scores, spread


class MixedSparsity(StepPlugin):
    """Masks that follow a plan over `steps` updates of windows of `window` tokens.

    `tokens` is what a device computes at once, for timing the layers.
    """

    name = "sparsity"

    def __init__(
        self, section: MixedConfig, steps: int, window: int, tokens: int, seed: int, beta2: float
    ) -> None:
        self.section, self.steps, self.seed = section, steps, seed
        self._window, self._tokens = window, tokens
        warm = section.grown_moments == "auto" and beta2 > 0.97
        self._moments_from_gradient = warm or section.grown_moments == "gradient"
        self._phase = 0  # whose density the masks have
        self._scheduled = 0  # by the clock; masks follow with the next update
        self._last_update = 0  # iteration
        self._churn = 0.0
        self._proof = _Proof()

    def setup(self, model: Any) -> None:
        self.design = design(self.section, model.backbone, model.head, self._window)
        self.plan, self.matrices = self.design.plan, self.design.matrices
        causal_lm = model.backbone.causal_lm
        self._attention = AttentionSwitch(causal_lm) if self.design.pattern else None
        self._executors = Executors(self.design, causal_lm, self._tokens)
        units = self.design.active_units(self.plan.phases[0].density)
        for matrix, active in zip(self.matrices, units, strict=True):
            generator = generator_for(self.seed, 0, matrix.name)
            matrix.set_mask(random_mask(matrix.shape, active, generator))
            matrix.watch()
            self._proof.watch(matrix, model.head if matrix.is_head else matrix.module)
            with torch.no_grad():
                matrix.parameter.mul_(matrix.full_mask(matrix.parameter.device))

    @property
    def phase(self) -> int:  # type: ignore[override]
        """Of the clock and of the masks, in one number: the loss may jump where either changes."""
        return self._scheduled * len(self.plan.phases) + self._phase

    def before_iteration(self, engine: Engine, clock: Clock) -> None:
        phase = self._current(clock)
        self._scheduled = self.plan.lookup(clock.applied, self.steps)[0]
        if self._attention is not None:
            self._attention.pattern = self.design.pattern if phase.sparse_attention else None
        self._scoring = self._is_due(clock)
        self._executors.arrange(self._phase, self._scoring)
        # What this iteration counts is settled before the masks change in it.
        self._counted = ([m.active for m in self.matrices], phase.sparse_attention, self._scoring)

    def after_backward(self, engine: Engine, clock: Clock) -> StepResult | None:
        self._proof.demand()
        if not self._scoring:
            return None
        # One full gradient at a time: all of them are as large as the model.
        gradients = (engine.get_gradient(matrix.parameter) for matrix in self.matrices)
        finite = [bool(torch.isfinite(gradient).all()) for gradient in gradients]
        if not all(finite):
            return None  # the step will be an overflow; the update stays due
        self._update(engine, clock)
        return StepResult.TOPOLOGY if self.section.skip_optimizer_step else None

    def after_step(self, engine: Engine, clock: Clock, result: StepResult) -> None:
        if result is StepResult.APPLIED:
            self._proof.begin()

    def metrics(self, clock: Clock) -> dict[str, float]:
        return {
            "sparsity/density": self._density,
            "sparsity/phase": float(self.plan.lookup(clock.applied, self.steps)[0]),
            "sparsity/mask_churn": self._churn,
            "sparsity/active_weights": float(self._active),
        }

    def status(self, clock: Clock) -> str:
        return f"{self._current(clock).name} {self._density:.3g}"

    def count(self, clock: Clock, flops: Flops) -> Flops:
        return self.design.count(flops, *self._counted)

    def plugin_state(self) -> dict[str, Tensor]:
        masks = {
            f"mask.{matrix.name}": torch.from_numpy(np.packbits(matrix.mask.numpy()))
            for matrix in self.matrices
        }
        position = torch.tensor([self._phase, self._last_update])
        return {"position": position, **self._executors.state(), **masks}

    def load_plugin_state(self, tensors: dict[str, Tensor]) -> None:
        if "position" not in tensors:
            raise RecipeError(
                "the checkpoint holds no masks, and the recipe's sparsity section asks for them: "
                "set sparsity.kind=dense, or choose another run.name to start a new run"
            )
        self._phase, self._last_update = map(int, tensors["position"])
        for matrix in self.matrices:
            bits = np.unpackbits(tensors[f"mask.{matrix.name}"].numpy(), count=matrix.mask.numel())
            matrix.set_mask(torch.from_numpy(bits.astype(bool)).view(matrix.shape))
        self._executors.load(tensors)

    # Masks ----------------------------------------------------------------------------------

    @property
    def _active(self) -> int:
        """Weights."""
        return sum(matrix.active for matrix in self.matrices)

    @property
    def _density(self) -> float:
        return self._active / sum(matrix.size for matrix in self.matrices)

    def _current(self, clock: Clock) -> Phase:
        return self.plan.phases[self.plan.lookup(clock.applied, self.steps)[0]]

    def _is_due(self, clock: Clock) -> bool:
        """At once when the density changes; every so many iterations while connections move."""
        phase = self._current(clock)
        if phase.density != self.plan.phases[self._phase].density:
            return True
        moves = phase.drop_fraction > 0 and phase.density < 1
        every = self.section.update_every
        return moves and clock.iteration // every != self._last_update // every

    def _update(self, engine: Engine, clock: Clock) -> None:
        """New masks from reduced gradients: every rank comes to the same."""
        self._phase = self.plan.lookup(clock.applied, self.steps)[0]
        self._last_update = clock.iteration
        units = self.design.active_units(self.plan.phases[self._phase].density)
        changed = 0
        for matrix, active in zip(self.matrices, units, strict=True):
            weight = engine.get_parameter(matrix.parameter)
            gradient = engine.get_gradient(matrix.parameter)
            mask = evolve(
                matrix.mask.to(weight.device),
                scores(weight, matrix.block),
                scores(gradient, matrix.block),
                active,
                self.plan.drop_fraction(clock.applied, self.steps),
                self.plan.gradient_share,
                generator_for(self.seed, clock.iteration, matrix.name),
            ).cpu()
            changed += int((mask ^ matrix.mask).sum()) * matrix.block**2
            self._move(engine, matrix, mask, weight, gradient)
        self._churn = changed / self._active
        self._executors.masks_changed()
        _same_on_all_ranks(self.matrices)

    def _move(
        self, engine: Engine, matrix: Matrix, mask: Tensor, weight: Tensor, gradient: Tensor
    ) -> None:
        """Weights and moments under a new mask: what comes begins at 0, what goes ends there."""
        changed = spread(mask ^ matrix.mask, matrix.block).to(weight.device)
        matrix.set_mask(mask)
        active = matrix.full_mask(weight.device)
        engine.set_parameter(matrix.parameter, weight * active)
        if not self.section.skip_optimizer_step:
            engine.set_gradient(matrix.parameter, gradient * active)
        for key in engine.moments():
            moment = engine.get_moment(matrix.parameter, key)
            if moment is None:
                continue
            moment = moment.masked_fill(changed, 0.0)
            if key == "exp_avg_sq" and self._moments_from_gradient:
                moment = torch.where(changed & active, gradient.square(), moment)
            engine.set_moment(matrix.parameter, key, moment)


class _Proof:
    """That masked weights are exactly 0 in the forward pass after the optimizer's first step.

    Looked at inside the pass itself, where every ZeRO stage has the weight that is used.
    """

    def __init__(self) -> None:
        self._state = "waiting"
        self._leaks: list[str] = []

    def watch(self, matrix: Matrix, module: nn.Module) -> None:
        module.register_forward_hook(lambda *_: self._look(matrix))

    def begin(self) -> None:
        if self._state == "waiting":
            self._state = "looking"

    def demand(self) -> None:
        """After the backward pass of every iteration. Collective once. RecipeError on a leak."""
        if self._state != "looking":
            return
        self._state = "done"
        leaks = [name for names in gather_objects(self._leaks) for name in names]
        if leaks:
            raise RecipeError(
                f"masked weights of {', '.join(dict.fromkeys(leaks))} were not 0 in the forward "
                "pass after an optimizer step: this optimizer or template moves weights that have "
                "no gradient; use optim.name=adamw and a template without offload"
            )

    def _look(self, matrix: Matrix) -> None:
        if self._state != "looking":
            return
        weight = matrix.parameter.detach()
        if bool(weight.masked_select(~matrix.full_mask(weight.device)).any()):
            self._leaks.append(matrix.name)


def _same_on_all_ranks(matrices: list[Matrix]) -> None:
    """RuntimeError when ranks have come to different masks. Collective."""
    digest = hashlib.blake2b(digest_size=16)
    for matrix in matrices:
        digest.update(np.packbits(matrix.mask.numpy()).tobytes())
    if len(set(gather_objects(digest.hexdigest()))) > 1:
        raise RuntimeError(
            "ranks have come to different masks: their reduced gradients or weights differ"
        )
