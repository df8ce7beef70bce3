"""An output matrix W = V U + 1 w^T that takes exact SGD steps without being touched as a whole.

A step turns W into W (c - eta C) - eta S - eta 1 b^T, with the sums C, b, S of `sums.py` and the
decay c. The first part is a product from the right, so it goes into U (d x d); the rest edits the
rows of V that were targets, and w. Kept beside: Q = W^T W and W^T 1, which the next losses need.
After Vincent, de Brebisson and Bouthillier (2015), section 3, with w as in their later code, and
one form of the update for batches of any size; derivation in docs/sparse-vocabulary.md.

U loses precision as its condition number grows, whatever is done about its inverse. So singular
values that have left [1/2, 2] are moved into V, which reads V once; and Q is formed anew at times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data_prep.errors import Diverged, RecipeError
from pipeline.heads.sums import ROWS_AT_ONCE, GradientSums, gram_of
from pipeline.products import product

_LOOK_EVERY = 20  # steps between two looks at the condition number of U
_REBUILD_EVERY = 1000  # steps between two formations of Q, at D d^2
_MOST_CONDITION = 100.0  # 10 costs twice the repairs for the same error, in fp32 too
_KEPT = (0.5, 2.0)  # singular values of U that are left alone


class Factors:
    """Takes `weight` (D, d), fp32 or fp64, over as V. RecipeError for storage in half precision."""

    def __init__(self, weight: Tensor) -> None:
        if weight.dtype not in (torch.float32, torch.float64):
            raise RecipeError(
                f"the factored output matrix cannot be kept in {weight.dtype}: its updates would "
                "be off by a fifth; keep it in fp32 (precision.dtype=fp32 for this head's matrix)"
            )
        self.outputs, self.width = weight.shape
        self.v = weight
        self.restart()
        self.steps = torch.zeros(1, dtype=torch.int64)
        self.moved_directions = 0

    def restart(self) -> None:
        """From the matrix as it stands: V is W, U the identity and w zero."""
        self.u = torch.eye(self.width, dtype=self.v.dtype, device=self.v.device)
        self.omega = self.v.new_zeros(self.width)
        self.rebuild()

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint needs."""
        return {
            "v": self.v, "u": self.u, "omega": self.omega, "gram": self.gram, "total": self.total,
            "steps": self.steps,
        }  # fmt: skip

    def load(self, tensors: dict[str, Tensor]) -> None:
        """What `tensors` gave; V is copied to where it lies."""
        self.v.copy_(tensors["v"])
        self.u, self.omega, self.gram, self.total = (
            tensors[name].to(self.v) for name in ("u", "omega", "gram", "total")
        )
        self.steps = tensors["steps"].cpu()

    def to(self, device: torch.device) -> None:
        self.v, self.u, self.omega, self.gram, self.total = (
            t.to(device) for t in (self.v, self.u, self.omega, self.gram, self.total)
        )

    def rows(self, ids: Tensor | slice) -> Tensor:
        """W[ids], (..., d)."""
        rows = self.v[ids]
        found = product(rows.reshape(-1, self.width), self.u.t(), self.omega)
        return found.view(rows.shape)

    def rebuild(self) -> None:
        """Q and W^T 1 from W itself: O(D d^2)."""
        gram, total = gram_of(lambda part: self.v[part], self.outputs)
        # W^T W = U^T V^T V U + U^T V^T 1 w^T + its transpose + D w w^T
        cross = torch.outer(self.u.t() @ total, self.omega)
        inner = self.u.t() @ gram @ self.u
        self.gram = inner + cross + cross.t() + self.outputs * torch.outer(self.omega, self.omega)
        self.total = self.u.t() @ total + self.outputs * self.omega

    def fold(self) -> None:
        """V becomes W, U the identity and w zero: O(D d^2)."""
        for rows in self.v.split(ROWS_AT_ONCE):
            rows.copy_(rows @ self.u + self.omega)
        self.u = torch.eye(self.width, dtype=self.u.dtype, device=self.u.device)
        self.omega = torch.zeros_like(self.omega)

    def sgd_step(
        self, sums: GradientSums, lr: float, decay: float = 0.0, clip_norm: float = 0.0
    ) -> float:
        """W <- (1 - lr decay) W - lr G, G clipped to `clip_norm` (0 = off); the norm of G.

        Diverged, with W as it was, when the sums are not finite or the step cannot be represented:
        its rate is so large that a direction of W would vanish.
        """
        ids, s = sums.rows()
        rows_s = product(self.rows(ids).t().contiguous(), s.t())  # W[ids]^T S
        gram_c = product(self.gram, sums.c.t())
        norm = float(sums.norm_squared(gram_c, rows_s, self.total, self.outputs).clamp_min(0))
        norm = norm**0.5
        if not norm < float("inf"):
            raise Diverged("the gradient of the factored head is not finite: lower head.lr")
        if clip_norm > 0 and norm > clip_norm:
            sums.scale(clip_norm / norm)
            gram_c *= clip_norm / norm
            rows_s *= clip_norm / norm
        if int(self.steps) % _LOOK_EVERY == 0:
            self.stabilise()
        if not self._step(sums, gram_c, rows_s, lr, 1 - lr * decay):
            self.stabilise()  # U was the trouble, perhaps, and not the step
            if not self._step(sums, gram_c, rows_s, lr, 1 - lr * decay):
                raise Diverged(
                    "a step of the factored head makes a direction of its matrix vanish: its "
                    "condition number is past repair; lower head.lr"
                )
        self.steps += 1
        if int(self.steps) % _REBUILD_EVERY == 0:
            self.rebuild()
        return norm

    def _step(
        self, sums: GradientSums, gram_c: Tensor, rows_s: Tensor, lr: float, keep: float
    ) -> bool:
        """The update, or False and nothing changed when U cannot carry it.

        With T = keep - lr C: U' = U T, w' = T w - lr b, V'[ids] = V[ids] - lr S U'^-1, and of Q and
        W^T 1 what follows from W' = W T - lr S - lr 1 b^T.
        """
        c, b = sums.c, sums.b
        ids, s = sums.rows()
        u = torch.add(keep * self.u, product(self.u, c.t()), alpha=-lr)
        lu, pivots, _ = torch.linalg.lu_factor_ex(u)
        diagonal = lu.diagonal().abs()
        most = 1e-2 / torch.finfo(u.dtype).eps
        if not float(diagonal.max()) < most * float(diagonal.min()):  # a NaN is refused too
            return False
        edit = torch.linalg.lu_solve(lu, pivots, s, left=False)
        moved = keep * self.total - lr * (c @ self.total)  # T W^T 1
        targets = s.sum(dim=0)
        # Q' = H + H^T, each of these half of what it adds to Q or to its transpose.
        c_both = product(c, torch.cat([rows_s, gram_c], dim=1).t())
        half = self.gram * (keep**2 / 2)
        half.add_(gram_c, alpha=-lr * keep).add_(c_both[:, self.width :], alpha=lr**2 / 2)
        half.add_(rows_s, alpha=-lr * keep).add_(c_both[:, : self.width], alpha=lr**2)
        half.add_(product(s.t().contiguous(), s.t()), alpha=lr**2 / 2)
        half.addr_(lr**2 * (targets + self.outputs / 2 * b) - lr * moved, b)
        self.gram = half + half.t()
        self.total = moved - lr * (targets + self.outputs * b)
        self.omega = keep * self.omega - lr * (c @ self.omega) - lr * b
        self.u = u
        self.v.index_add_(0, ids, edit, alpha=-lr)  # last: the only one that cannot be repeated
        return True

    def stabilise(self) -> None:
        """Move singular values of U outside [1/2, 2] into V when its condition is worse than 100,
        or all of it has become small.

        W does not change. O(D d) for each direction, O(D d^2) when they are many.
        """
        values = torch.linalg.svdvals(self.u)
        largest, smallest = float(values.max()), float(values.min())
        if largest <= _MOST_CONDITION * smallest and 1 <= _MOST_CONDITION * smallest:
            return
        left, values, right = torch.linalg.svd(self.u)
        low, high = _KEPT
        bad = (values < low) | (values > high)
        self.moved_directions += int(bad.sum())
        if 3 * int(bad.sum()) > self.width:
            self.fold()
            return
        x, sigma = left[:, bad], values[bad]
        self.u = self.u + (x * (1 - sigma)) @ right[bad]
        for rows in self.v.split(ROWS_AT_ONCE):
            rows.addmm_(rows @ (x * (sigma - 1)), x.t())
