"""The spherical family: losses that see all outputs only through two sums.

With outputs o = W h, such a loss is a function of q = sum o_i^2, s = sum o_i and the outputs a of
the targets (Vincent, de Brebisson and Bouthillier 2015, section 4; de Brebisson and Vincent 2015,
2016). Its gradient in o is 2 gq o + gs + (ga at the targets), which is what makes exact training
possible without ever computing o. Softmax cross-entropy, hinge and whatever needs a maximum or a
sum of exponentials of all outputs are outside.

Every loss is a differentiable function of (q, s, a), so gq, gs and ga come from autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_prep.errors import RecipeError
from pipeline.recipe.head import OUTSIDE


@dataclass(frozen=True)
class SphericalLoss:
    """q, s (N,), a (N, K), number of outputs, target values (N, K) or None -> losses (N,)."""

    name: str
    of: Callable[[Tensor, Tensor, Tensor, int, Tensor | None], Tensor]
    scores: Callable[[Tensor], Tensor]  # log-probabilities of all outputs o (..., D), less a
    # constant of each row; where there are no probabilities, what the outputs are ranked by
    has_probabilities: bool  # the loss is minus the log-probability of the target
    many_targets: bool = False  # K > 1 is allowed
    epsilon: float = 0.0

    def __call__(
        self, q: Tensor, s: Tensor, a: Tensor, outputs: int, values: Tensor | None = None
    ) -> Tensor:
        if not self.many_targets and (a.shape[-1] != 1 or values is not None):
            raise RecipeError(
                f"the {self.name} loss takes one target an example, without a value; found "
                f"{a.shape[-1]}{'' if values is None else ' with values'}: use squared"
            )
        return self.of(q, s, a, outputs, values)


def squared() -> SphericalLoss:
    """|o - y|^2 for y with K entries that are not zero; a target without a value is 1."""

    def of(q: Tensor, s: Tensor, a: Tensor, outputs: int, values: Tensor | None) -> Tensor:
        y = torch.ones_like(a) if values is None else values
        return q + (y * (y - 2 * a)).sum(dim=-1)

    return SphericalLoss("squared", of, lambda o: o, False, many_targets=True)


def spherical(epsilon: float = 1e-2) -> SphericalLoss:
    """Log spherical softmax: p_i = (o_i^2 + epsilon) / (q + D epsilon)."""

    def of(q: Tensor, s: Tensor, a: Tensor, outputs: int, values: Tensor | None) -> Tensor:
        return torch.log(q + outputs * epsilon) - torch.log(a.squeeze(-1) ** 2 + epsilon)

    return SphericalLoss(
        "spherical", of, lambda o: torch.log(o * o + epsilon), True, epsilon=epsilon
    )


def taylor() -> SphericalLoss:
    """Log Taylor softmax of second order: p_i = (1 + o_i + o_i^2 / 2) / (D + s + q / 2)."""

    def of(q: Tensor, s: Tensor, a: Tensor, outputs: int, values: Tensor | None) -> Tensor:
        a = a.squeeze(-1)
        return torch.log(outputs + s + q / 2) - torch.log1p(a + a * a / 2)

    # 1 + o + o^2 / 2 is at least 1/2: no epsilon is needed.
    return SphericalLoss("taylor", of, lambda o: torch.log1p(o + o * o / 2), True)


def z_loss(sharpness: float = 0.1, offset: float = 10.0) -> SphericalLoss:
    """softplus(A (B - z)) / A with the target's z-score z = (a - mean of o) / deviation of o.

    A is the sharpness, B the offset in deviations (de Brebisson and Vincent 2016, section 3). It
    does not change when o is shifted or scaled, and has no probabilities.
    """

    def of(q: Tensor, s: Tensor, a: Tensor, outputs: int, values: Tensor | None) -> Tensor:
        mean = s / outputs
        # The small number keeps equal outputs, as in a matrix of zeros, from dividing by zero.
        deviation = torch.sqrt((q / outputs - mean * mean).clamp_min(0) + 1e-8)
        z = (a.squeeze(-1) - mean) / deviation
        return nn.functional.softplus(sharpness * (offset - z)) / sharpness

    return SphericalLoss("z", of, lambda o: o, False)


def build_loss(
    name: str, epsilon: float = 1e-2, sharpness: float = 0.1, offset: float = 10.0
) -> SphericalLoss:
    """The loss of that name; RecipeError for one outside the family."""
    made = {
        "squared": squared, "spherical": lambda: spherical(epsilon), "taylor": taylor,
        "z": lambda: z_loss(sharpness, offset),
    }  # fmt: skip
    if name not in made:
        raise RecipeError(f"loss {name!r} is outside the spherical family: {OUTSIDE}")
    return made[name]()
