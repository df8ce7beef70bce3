"""The Gram head: exact training of an explicit output matrix at a cost free of the vocabulary.

Once a step Q = W^T W and W^T 1 are formed; an example then needs Q h and the rows of W of its
targets. The gradient is kept as three small sums and written out once a step, in full, so that any
optimizer, clipping, decay and ZeRO stage see what autograd would have given them. Between, nothing
of size examples x vocabulary exists. After Vincent, de Brebisson and Bouthillier (2015), whose
factored form (`factored.py`) is for batches small beside the vocabulary and plain SGD.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.clock import Clock, StepResult
from pipeline.heads.spherical import SphericalLoss
from pipeline.heads.sums import Examples, GradientSums, gram_of
from pipeline.products import product
from pipeline.protocols import Engine, Head


class GramHead(Head):
    """`tokens_per_step`, by the updates so far where it changes, is for the count of FLOPs alone.
    `tied`: autograd writes a gradient into the same matrix, which is added to."""

    def __init__(
        self,
        loss: SphericalLoss,
        tokens_per_step: int | Callable[[int], int],
        *,
        tied: bool = False,
        logit_scale: float = 1.0,
        learned_scale: bool = False,
    ) -> None:
        super().__init__()
        self.spherical = loss
        self.has_probabilities = loss.has_probabilities
        varies = callable(tokens_per_step)
        self._tokens_at: Any = tokens_per_step if varies else lambda _: tokens_per_step
        self.tied = tied
        self.logit_scale = logit_scale
        # o = scale o + offset stays in the family, and lets the loss choose where it works.
        self.scale = nn.Parameter(torch.ones(1)) if learned_scale else None
        self.offset = nn.Parameter(torch.zeros(1)) if learned_scale else None

    def bind(self, output_weight: Tensor | None, output_bias: Tensor | None = None) -> None:
        if output_weight is None:
            raise ValueError("a Gram head needs the backbone's output matrix")
        # The same Parameter objects, registered here too: ZeRO-3 gathers what a module owns.
        self.weight: Any = output_weight
        self.bias: Any = output_bias
        self.outputs, self.width = output_weight.shape
        self.gram: Tensor | None = None  # of the present weights; None when they have moved
        width = self.width + (output_bias is not None)
        self.sums = GradientSums(width, output_weight.device, torch.float32)

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        q, s, a = self.statistics(hidden.flatten(0, -2), targets.reshape(-1, 1))
        q, s, a = self._shaped(q, s, a)
        losses = self.spherical(q, s, a, self.outputs)
        return (losses * weights.flatten()).sum(), weights.sum()

    def statistics(self, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, s (N,) and a (N, K) in fp32 of hidden (N, d) and target ids (N, K), differentiable.

        The backward pass adds to the sums of W's gradient, and gives W itself none.
        """
        if self.gram is None:
            self.sums.to(self.weight.device)  # the engine may have moved the model
            self._form_gram()
        h = hidden.float()
        if self.bias is not None:  # a bias is one more column of W, whose input is 1
            h = torch.cat([h, h.new_ones(len(h), 1)], dim=1)
        h = h * self.logit_scale
        return _Statistics.apply(h, ids, self._rows(ids), self.gram, self.total, self.sums)

    @torch.no_grad()
    def _form_gram(self) -> None:
        self.gram, self.total = gram_of(self._rows, self.outputs)

    @torch.no_grad()
    def _rows(self, ids: Any) -> Tensor:
        """Rows of W in fp32, each with its bias at the end where there is one."""
        rows = self.weight[ids].float()
        if self.bias is None:
            return rows
        return torch.cat([rows, self.bias[ids].float().unsqueeze(-1)], dim=-1)

    def _shaped(self, q: Tensor, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The statistics of scale * o + offset."""
        if self.scale is None or self.offset is None:
            return q, s, a
        scale, offset = self.scale.float(), self.offset.float()
        q = scale**2 * q + 2 * scale * offset * s + self.outputs * offset**2
        return q, scale * s + self.outputs * offset, scale * a + offset

    def log_prob(self, hidden: Tensor) -> Tensor:
        logits = nn.functional.linear(hidden, self.weight, self.bias).float()
        return self.scores(self.logit_scale * logits).log_softmax(dim=-1)

    def scores(self, logits: Tensor) -> Tensor:
        if self.scale is not None and self.offset is not None:
            logits = self.scale * logits + self.offset
        return self.spherical.scores(logits)

    def export_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"loss": self.spherical.name, "epsilon": self.spherical.epsilon}
        if self.scale is not None and self.offset is not None:
            settings |= {"scale": self.scale.item(), "offset": self.offset.item()}
        return settings

    def finish_accumulation(self, engine: Engine) -> None:
        self._reduce_sums(engine)
        weight = self.weight if self.weight.numel() else engine.get_parameter(self.weight)
        bias = self.bias
        if bias is not None:
            column = bias if bias.numel() else engine.get_parameter(bias)
            weight = torch.cat([weight.float(), column.float().unsqueeze(1)], dim=1)
        gradient = self.sums.gradient(weight.detach().to(self.weight.dtype))
        self.sums.clear()
        if bias is not None:
            engine.set_gradient(bias, gradient[:, -1].contiguous())
            gradient = gradient[:, :-1].contiguous()
        if self.tied:
            gradient += engine.get_gradient(self.weight)
        engine.set_gradient(self.weight, gradient)

    def _reduce_sums(self, engine: Engine) -> None:
        """The sums of all ranks, unscaled. Collective."""
        self._exchange()
        # Summed over ranks, where the engine's own gradients are means; see `Engine.backward`.
        self.sums.scale(1.0 / (engine.loss_scale * engine.world_size))

    def _exchange(self) -> None:
        self.sums.reduce()

    def after_step(self, result: StepResult) -> None:
        self.forget()

    def forget(self) -> None:
        """The matrix has moved, or its step was skipped: nothing of before goes into the next."""
        self.gram = None
        self.sums.clear()

    def flops(self, clock: Clock) -> float:
        # Forward and backward count as three times this: Q h and C of a token, and its share of
        # the products that form Q and the gradient once a step.
        once = 4.0 * self.outputs * self.width**2 / self._tokens_at(clock.applied)
        return (4.0 * self.width**2 + once) / 3

    def dense_flops(self) -> float:
        return 2.0 * self.outputs * self.width


class _Statistics(torch.autograd.Function):
    """(h, target ids, their rows) -> (q, s, a); the gradient of W goes into the sums."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, h: Tensor, ids: Tensor, rows: Tensor, gram: Tensor, total: Tensor, sums: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        gram_h = product(h, gram)  # which is symmetric
        ctx.save_for_backward(h, ids, rows, gram_h, total)
        ctx.sums = sums
        return (h * gram_h).sum(dim=1), h @ total, (h.unsqueeze(1) * rows).sum(-1)

    @staticmethod
    def backward(ctx: Any, gq: Tensor, gs: Tensor, ga: Tensor) -> Any:  # type: ignore[override]
        h, ids, rows, gram_h, total = ctx.saved_tensors
        ctx.sums.add(Examples(h, gq, gs, ga, ids))
        d_h = gram_h * (2 * gq).unsqueeze(1)
        d_h.addcmul_(gs.unsqueeze(1), total)
        if rows.shape[1] == 1:
            d_h.addcmul_(ga, rows[:, 0])
        else:
            d_h += torch.einsum("nk,nkd->nd", ga, rows)
        return d_h, None, None, None, None, None
