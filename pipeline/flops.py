"""Counted FLOPs of a token, by the part of the model that they are spent in."""

from __future__ import annotations

from typing import NamedTuple


class Flops(NamedTuple):
    """A multiplication and an addition are two; a causal position sees half the window."""

    blocks: float  # matrices of the layers
    attention: float  # products of queries, keys and values
    head: float  # the output layer

    @property
    def total(self) -> float:
        return sum(self)

    def times(self, factor: float) -> Flops:
        return Flops(*(factor * part for part in self))
