"""Which earlier positions a position attends to, and how many those are.

The four patterns of hybrid sparse attention (Hu et al. 2024); all are causal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from data_prep.errors import RecipeError

Kind = Literal["local", "strided", "local_strided", "fixed"]


@dataclass(frozen=True)
class Pattern:
    """Position i attends to j <= i where

    local          i - j < window
    strided        i - j is a multiple of window
    local_strided  either
    fixed          j is in i's block of window positions, or is the last of an earlier block
    """

    kind: Kind
    window: int

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise RecipeError(f"attention pattern {self.kind!r} is unknown: use one of {known}")
        if self.window < 1:
            raise RecipeError(f"attention window {self.window} is below 1: use 1 or more")

    def mask(self, length: int) -> Tensor:
        """(length, length) bool, True where row i attends to column j."""
        i = torch.arange(length).unsqueeze(1)
        j = torch.arange(length)
        near = i - j < self.window
        aligned = (i - j) % self.window == 0
        own = i // self.window == j // self.window
        last = (j + 1) % self.window == 0
        allowed = {
            "local": near,
            "strided": aligned,
            "local_strided": near | aligned,
            "fixed": own | last,
        }
        return allowed[self.kind] & (j <= i)

    def entries(self, length: int) -> int:
        """Number of pairs (i, j) attended to among `length` positions."""
        window = min(self.window, length)
        blocks, rest = divmod(length, self.window)
        band = _triangle(window) + (length - window) * window
        # Position i has i // window positions before it at multiples of the window, and as many
        # blocks before its own.
        earlier = self.window * _triangle(blocks - 1) + rest * blocks
        counts = {
            "local": band,
            "strided": length + earlier,
            "local_strided": band + earlier,
            "fixed": blocks * _triangle(self.window) + _triangle(rest) + earlier,
        }
        return counts[self.kind]

    def share(self, length: int) -> float:
        """Of the pairs of full causal attention."""
        return self.entries(length) / _triangle(length)


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
