"""Adaptive softmax (Grave et al. 2017) through `torch.nn.AdaptiveLogSoftmaxWithLoss`.

Another model than a full softmax: rare ids share clusters whose matrices are narrower. Ids must be
sorted by frequency, as those of the word-level tokenizer are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data_prep.errors import RecipeError
from pipeline.clock import Clock
from pipeline.protocols import Head


class AdaptiveHead(Head):
    """Has matrices of its own; the backbone's output matrix is not used."""

    def __init__(self, cutoffs: Sequence[int], div_value: float) -> None:
        super().__init__()
        self.cutoffs = list(cutoffs)
        self.div_value = div_value

    def bind(self, output_weight: Tensor | None, output_bias: Tensor | None = None) -> None:
        if output_weight is None:
            raise ValueError("an adaptive head takes its sizes from the backbone's output matrix")
        self.vocab_size, self.width = output_weight.shape
        try:
            self.softmax = nn.AdaptiveLogSoftmaxWithLoss(
                self.width, self.vocab_size, self.cutoffs, self.div_value,
                device=output_weight.device,
            )  # fmt: skip
        except ValueError as error:
            raise RecipeError(
                f"head.cutoffs={self.cutoffs} do not fit a vocabulary of {self.vocab_size}: {error}"
            ) from None

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        flat, ids, weights = hidden.flatten(0, -2), targets.flatten(), weights.flatten()
        first = self.softmax.cutoffs[0]
        cluster = torch.bucketize(ids, self._edges(ids.device), right=True)  # 0 is the head's own
        place = torch.where(cluster == 0, ids, first + cluster - 1)
        log_prob = self.softmax.head(flat).float().log_softmax(dim=1)
        total = (log_prob.gather(1, place.unsqueeze(1)).squeeze(1) * weights).sum()
        for number, tail in enumerate(self.softmax.tail, 1):
            rows = torch.nonzero(cluster == number).squeeze(1)
            # Without a target a cluster computes a row for nothing: ranks that gather or reduce
            # its matrices wait for each other, and each must come.
            used = rows if len(rows) else rows.new_zeros(1)
            log_prob = tail(flat[used]).float().log_softmax(dim=1)
            inside = ids[used] - self.softmax.cutoffs[number - 1] if len(rows) else used
            found = log_prob.gather(1, inside.unsqueeze(1)).squeeze(1)
            total = total + (found * weights[used]).sum() * float(len(rows) > 0)
        return -total, weights.sum()

    def _edges(self, device: torch.device) -> Tensor:
        """The first id of each cluster beyond the head's own."""
        return torch.tensor(self.softmax.cutoffs[:-1], device=device)

    def log_prob(self, hidden: Tensor) -> Tensor:
        flat = self.softmax.log_prob(hidden.flatten(0, -2)).float()
        return flat.view(*hidden.shape[:-1], self.vocab_size)

    def export_settings(self) -> dict[str, Any]:
        return {"loss": "adaptive", "cutoffs": self.cutoffs, "div_value": self.div_value}

    def flops(self, clock: Clock) -> float:
        """Of a token in the head cluster: what is beyond depends on the text."""
        return 2.0 * self.width * (self.softmax.head_size)

    def dense_flops(self) -> float:
        return 2.0 * self.vocab_size * self.width
