"""Sampled softmax (Jean et al. 2015): the target against a shared sample of the vocabulary.

A biased gradient that approaches the full one as the sample grows. Held-out losses and
probabilities are those of the full softmax.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipeline.clock import Clock
from pipeline.heads.softmax import SoftmaxHead
from pipeline.seeds import generator_for


class SampledHead(SoftmaxHead):
    """`samples` ids are drawn for every micro-batch, by a log-uniform law that fits ids sorted by
    frequency. Equal on all ranks that are at the same micro-batch of a step."""

    def __init__(self, samples: int, seed: int, logit_scale: float = 1.0) -> None:
        super().__init__(logit_scale=logit_scale)
        self.samples = samples
        self.seed = seed
        self._iteration = self._micro_batch = 0

    def begin_step(self, clock: Clock) -> None:
        self._iteration, self._micro_batch = clock.iteration, 0

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return super().loss(hidden, targets, weights)
        h, t = hidden.flatten(0, -2), targets.flatten()
        drawn = self._draw().to(h.device)
        negatives = self._logits(h, drawn) - self._log_expected(drawn)
        negatives.masked_fill_(drawn == t.unsqueeze(1), -math.inf)  # drawn by accident
        own = (h * self.weight[t]).sum(dim=1).float()
        if self.bias is not None:
            own = own + self.bias[t].float()
        own = own * self.logit_scale
        # The sum over the vocabulary is the target's share, known, and an estimate of the others'.
        losses = torch.logaddexp(own, negatives.logsumexp(dim=1)) - own
        return (losses * weights.flatten()).sum(), weights.sum()

    def _logits(self, h: Tensor, ids: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias[ids]
        return nn.functional.linear(h, self.weight[ids], bias).float() * self.logit_scale

    def _draw(self) -> Tensor:
        generator = generator_for(self.seed, "sampled", self._iteration, self._micro_batch)
        self._micro_batch += 1
        u = torch.rand(self.samples, generator=generator, dtype=torch.float64)
        ids = torch.exp(u * math.log(self.vocab_size + 1)) - 1
        return ids.to(torch.int64).clamp_(max=self.vocab_size - 1)

    def _log_expected(self, ids: Tensor) -> Tensor:
        """Log of how often an id is expected in the sample."""
        i = ids.double()
        share = torch.log((i + 2) / (i + 1)) / math.log(self.vocab_size + 1)
        return torch.log(share * self.samples).float()

    def flops(self, clock: Clock) -> float:
        return 2.0 * (self.samples + 1) * self.width
