"""The factored head: the source's own algorithm, for steps of few tokens over very many outputs.

The matrix is a product that is trained by plain SGD in O(d^2) a token and O(d^3) a step, nothing of
which grows with the vocabulary; see `factors.py`. It belongs to the head, out of sight of ZeRO and
of the optimizer, and is the same on every rank because all of them take the same step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from data_prep.errors import RecipeError
from pipeline.clock import Clock, StepResult
from pipeline.heads.factors import Factors
from pipeline.heads.gram import GramHead
from pipeline.heads.spherical import SphericalLoss
from pipeline.protocols import Engine


class FactoredHead(GramHead):
    """`lr_share` is this head's rate over the recipe's, so that both follow one schedule."""

    def __init__(
        self,
        loss: SphericalLoss,
        tokens_per_step: int | Callable[[int], int],
        *,
        lr_share: float,
        weight_decay: float = 0.0,
        clip_norm: float = 0.0,
        logit_scale: float = 1.0,
    ) -> None:
        super().__init__(loss, tokens_per_step, logit_scale=logit_scale)
        self.lr_share = lr_share
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.rate = 0.0  # of the step to come

    def bind(self, output_weight: Tensor | None, output_bias: Tensor | None = None) -> None:
        """RecipeError for a matrix with a bias."""
        if output_bias is not None:
            raise RecipeError(
                "head.kind=factored has no bias and this architecture's output has one: use "
                "head.kind=gram, or an architecture without"
            )
        super().bind(output_weight)
        self.weight.requires_grad_(False)  # the optimizer leaves it alone
        # In the same memory, as long as the engine leaves the parameter where it is.
        self.factors = Factors(self.weight.detach())

    def _form_gram(self) -> None:
        self.factors.to(self.weight.device)
        self.gram, self.total = self.factors.gram, self.factors.total

    @torch.no_grad()
    def _rows(self, ids: Tensor | slice) -> Tensor:
        return self.factors.rows(ids)

    def log_prob(self, hidden: Tensor) -> Tensor:
        h = hidden.float() * self.logit_scale
        logits = nn.functional.linear(h @ self.factors.u.t(), self.factors.v)
        logits += (h @ self.factors.omega).unsqueeze(-1)
        return self.scores(logits).log_softmax(dim=-1)

    def finish_accumulation(self, engine: Engine) -> None:
        self._reduce_sums(engine)
        self.rate = engine.lr * self.lr_share

    def after_step(self, result: StepResult) -> None:
        if result is StepResult.APPLIED:
            self.factors.sgd_step(self.sums, self.rate, self.weight_decay, self.clip_norm)
        super().after_step(result)

    def owned_parameters(self) -> dict[str, Tensor]:
        return self.factors.tensors()

    def load_plugin_state(self, tensors: dict[str, Tensor]) -> None:
        self.factors.load(tensors)
        self.gram = None

    def settle(self) -> None:
        self.factors.fold()
        self.weight.data.copy_(self.factors.v)

    def flops(self, clock: Clock) -> float:
        # A token: Q h, its row V[t] U, C and S U^-1; a step: five products of d x d.
        return (8.0 * self.width**2 + 10.0 * self.width**3 / self._tokens_at(clock.applied)) / 3
