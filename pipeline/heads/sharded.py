"""The Gram head with the rows of its matrix shared out over ranks.

Every rank keeps, trains and saves the optimizer state of an equal run of rows, out of sight of ZeRO
and of the engine's optimizer. A step moves d x d sums, the rows of W that are targets, and the rows
of their gradient; no tensor of D x d is ever communicated. Rows are in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_prep.errors import RecipeError
from pipeline.clock import StepResult
from pipeline.heads.gram import GramHead
from pipeline.heads.rows import RowShares
from pipeline.heads.spherical import SphericalLoss
from pipeline.heads.sums import gram_of
from pipeline.protocols import Engine
from pipeline.ranks import world_size
from pipeline.recipe.optim import OptimConfig

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedGramHead(GramHead):
    """Its AdamW is that of the recipe, its gradient clipped by a norm of its own."""

    def __init__(
        self,
        loss: SphericalLoss,
        tokens_per_step: int | Callable[[int], int],
        optim: OptimConfig,
        *,
        logit_scale: float = 1.0,
        learned_scale: bool = False,
    ) -> None:
        super().__init__(
            loss, tokens_per_step, logit_scale=logit_scale, learned_scale=learned_scale
        )
        self._optim = optim
        self._rate = 0.0

    def bind(self, output_weight: Tensor | None, output_bias: Tensor | None = None) -> None:
        """RecipeError for a matrix with a bias. Collective."""
        if output_bias is not None:
            raise RecipeError(
                "head.sharded has no bias and this architecture's output has one: set "
                "head.sharded=false, or take an architecture without"
            )
        super().bind(output_weight)
        # ZeRO-3 would gather it for every call: the backbone keeps it, frozen, for the export.
        frozen = self._parameters.pop("weight")
        assert frozen is not None
        frozen.requires_grad_(False)
        self._output = [frozen]
        self.shares = RowShares(self.outputs)
        self.weight = frozen.detach()[self.shares.own].float().clone()  # the rows of this rank
        self._restart({name: torch.zeros_like(self.weight) for name in _MOMENTS}, steps=0)

    def _restart(self, moments: dict[str, Tensor], steps: float) -> None:
        """The optimizer of the present rows, with a past."""
        optim = self._optim
        self._adam = torch.optim.AdamW(
            [self.weight], lr=optim.lr, betas=optim.betas, eps=optim.eps,
            weight_decay=optim.weight_decay,
        )  # fmt: skip
        self._adam.state[self.weight] = {"step": torch.tensor(float(steps)), **moments}

    @torch.no_grad()
    def _form_gram(self) -> None:
        self._to(self._output[0].device)
        self.sums.to(self.weight.device)
        own, total = gram_of(lambda part: self.weight[part], len(self.weight))
        both = torch.cat([own, total.unsqueeze(0)])
        if world_size() > 1:
            dist.all_reduce(both)
        self.gram, self.total = both[:-1], both[-1]

    def _to(self, device: torch.device) -> None:
        """Rows and moments to where the engine has taken the model."""
        if self.weight.device != device:
            state = self._adam.state[self.weight]
            self.weight = self.weight.to(device)
            moments = {name: state[name].to(device) for name in _MOMENTS}
            self._restart(moments, float(state["step"]))

    @torch.no_grad()
    def _rows(self, ids: Any) -> Tensor:
        return self.shares.fetch(ids, self.weight)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Of the backbone's matrix: the first one, and after `settle` the trained one."""
        logits = nn.functional.linear(hidden.float(), self._output[0].float())
        return self.scores(self.logit_scale * logits).log_softmax(dim=-1)

    def finish_accumulation(self, engine: Engine) -> None:
        self._rate = engine.lr
        self._reduce_sums(engine)

    def _exchange(self) -> None:
        """C and b of all ranks; of S what belongs to the rows of this rank."""
        self.sums.reduce_products()
        self.sums.replace_rows(*self.shares.route(*self.sums.rows()))

    @torch.no_grad()
    def after_step(self, result: StepResult) -> None:
        if result is StepResult.APPLIED:
            gradient = self.sums.gradient(self.weight)
            self.weight.grad = gradient.mul_(self._clip_factor(gradient))
            for group in self._adam.param_groups:
                group["lr"] = self._rate
            self._adam.step()
            self.weight.grad = None
        super().after_step(result)

    def _clip_factor(self, gradient: Tensor) -> float:
        limit = self._optim.gradient_clip_norm
        if limit == 0:
            return 1.0
        squared = gradient.square().sum()
        if world_size() > 1:
            dist.all_reduce(squared)
        return min(1.0, limit / (float(squared) ** 0.5 + 1e-6))

    def plugin_state(self) -> dict[str, Tensor]:
        """Whole tensors, so that another number of ranks can go on. Collective."""
        state = self._adam.state[self.weight]
        own = {"rows": self.weight} | {name: state[name] for name in _MOMENTS}
        whole = {name: self.shares.gather(rows).cpu() for name, rows in own.items()}
        return {"steps": state["step"].view(1), **whole}

    def load_plugin_state(self, tensors: dict[str, Tensor]) -> None:
        own = {name: tensor[self.shares.own].to(self.weight) for name, tensor in tensors.items()
               if name != "steps"}  # fmt: skip
        self.weight = own.pop("rows")
        self._restart(own, float(tensors["steps"]))
        self.gram = None

    def settle(self) -> None:
        self._output[0].data.copy_(self.shares.gather(self.weight))
