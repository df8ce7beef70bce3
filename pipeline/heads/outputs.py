"""Very many outputs with sparse targets, for any network: multi-label targets, sparse vectors.

    outputs = SparseOutputs(width=300, outputs=500_000)          # any torch optimizer
    loss = outputs(hidden, ids, values).mean()                   # ids, values (N, K)
    loss.backward()                                              # gradients of `hidden`, exact
    outputs.write_gradient()                                     # outputs.weight.grad, exact
    optimizer.step()

    outputs = FactoredOutputs(width=300, outputs=500_000)        # SGD of its own
    outputs(hidden, ids, values).mean().backward()
    outputs.step(lr=0.01)

Neither computes all outputs. The first costs O(d^2) an example and O(D d^2) a step; the second
O(d^2) an example and O(d^3) a step, so it is for steps of few examples (docs/sparse-vocabulary.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_prep.errors import DataError
from pipeline.heads.factored import FactoredHead
from pipeline.heads.gram import GramHead
from pipeline.heads.spherical import SphericalLoss, squared


class SparseOutputs(nn.Module):
    """An output matrix (D, d), a Parameter, whose gradient is written once a step."""

    def __init__(self, width: int, outputs: int, loss: SphericalLoss | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, width) / width**0.5 * 0.1)
        self.outputs = outputs
        self._seen: tuple[int, int] | None = None
        self._head = self._make(loss or squared())
        self._head.bind(self.weight)
        self.register_load_state_dict_post_hook(lambda outputs, _: outputs._loaded())

    def _loaded(self) -> None:
        """Other weights are in place: nothing that was kept of those before holds."""
        self._head.forget()

    def _make(self, loss: SphericalLoss) -> GramHead:
        return GramHead(loss, 1)

    def forward(self, hidden: Tensor, ids: Tensor, values: Tensor | None = None) -> Tensor:
        """Losses (N,) of hidden (N, d) for targets `ids` (N, K) with `values` (N, K), 1 if None.

        Rows with fewer than K targets are padded with any id of value 0. DataError for ids outside
        [0, D), shapes that do not fit, or inputs that are not finite; nothing is changed then.
        """
        self._check(hidden, ids, values)
        self._look_at_weight()
        q, s, a = self._head.statistics(hidden, ids)
        return self._head.spherical(q, s, a, self.outputs, values)

    def _look_at_weight(self) -> None:
        """Forget what was formed of weights that an optimizer has moved since."""
        seen = self.weight.data_ptr(), self.weight._version
        if seen != self._seen:
            self._head.gram, self._seen = None, seen

    def write_gradient(self) -> None:
        """Set `weight.grad` from what has been backpropagated since the last call."""
        self.weight.grad = self._head.sums.gradient(self.weight.detach())
        self._head.forget()

    @torch.no_grad()
    def topk(self, hidden: Tensor, k: int, rows_at_once: int = 1 << 16) -> tuple[Tensor, Tensor]:
        """The k largest of all outputs (N, k) and their ids, computed in chunks of the matrix."""
        best = hidden.new_full((len(hidden), 0), 0.0)
        ids = torch.empty(len(hidden), 0, dtype=torch.int64, device=hidden.device)
        for first in range(0, self.outputs, rows_at_once):
            chunk = hidden @ self._head._rows(slice(first, first + rows_at_once)).t()
            names = torch.arange(first, first + chunk.shape[1], device=hidden.device)
            every = torch.cat([best, chunk], dim=1)
            all_ids = torch.cat([ids, names.expand(len(hidden), -1)], dim=1)
            best, place = every.topk(min(k, every.shape[1]), dim=1)
            ids = all_ids.gather(1, place)
        return best, ids

    def _check(self, hidden: Tensor, ids: Tensor, values: Tensor | None) -> None:
        if ids.dim() != 2 or len(ids) != len(hidden):
            raise DataError(
                f"targets are {tuple(ids.shape)} for {len(hidden)} examples: expected (N, K)"
            )
        if values is not None and values.shape != ids.shape:
            raise DataError(
                f"values are {tuple(values.shape)}, targets {tuple(ids.shape)}: expected the same"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.outputs:
            raise DataError(
                f"targets go from {low} to {high}, outside [0, {self.outputs}): correct the ids, "
                "or give more outputs"
            )
        for name, tensor in (("hidden", hidden), ("values", values)):
            if tensor is not None and not torch.isfinite(tensor).all():
                raise DataError(f"{name} holds numbers that are not finite: nothing was changed")


class FactoredOutputs(SparseOutputs):
    """The matrix as a product that takes SGD steps whose cost does not grow with D. No tensor of
    D x d but the matrix itself; `weight` is up to date after `fold`, which comes before saving."""

    def _make(self, loss: SphericalLoss) -> GramHead:
        return FactoredHead(loss, 1, lr_share=1.0)

    def step(self, lr: float, decay: float = 0.0, clip_norm: float = 0.0) -> float:
        """W <- (1 - lr decay) W - lr G, with G of what was backpropagated since the last step; the
        norm of G before clipping. Diverged when the step cannot be represented; see `Factors`."""
        head = self._factored
        norm = head.factors.sgd_step(head.sums, lr, decay, clip_norm)
        head.forget()
        return norm

    def fold(self) -> None:
        """Bring `weight` up to date."""
        self._factored.settle()

    def _loaded(self) -> None:
        self._factored.factors.restart()

    def _look_at_weight(self) -> None:
        """Nobody but `step` moves it, which knows what it does."""

    def write_gradient(self) -> None:
        raise TypeError("a factored matrix has no gradient to write: call step(lr)")

    @property
    def _factored(self) -> FactoredHead:
        assert isinstance(self._head, FactoredHead)
        return self._head
