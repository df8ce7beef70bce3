"""How one density is shared out among matrices of different shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal


def share_out(
    shapes: Sequence[tuple[int, int]], density: float, how: Literal["uniform", "erdos_renyi"]
) -> list[float]:
    """Densities per matrix whose average over all weights is `density`.

    Erdos-Renyi (Mocanu et al. 2018; Evci et al. 2020) gives a matrix of n x m a density in
    proportion to (n + m) / (n m), so that narrow ones stay denser; one that would pass 1 is kept
    whole and the others are solved again.
    """
    if how == "uniform" or density == 1.0:
        return [density] * len(shapes)
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    whole: set[int] = set()
    while True:
        rest = [i for i in range(len(shapes)) if i not in whole]
        budget = density * sum(sizes) - sum(sizes[i] for i in whole)
        scale = budget / sum(raw[i] * sizes[i] for i in rest)
        over = {i for i in rest if scale * raw[i] > 1}
        if not over:
            return [1.0 if i in whole else scale * raw[i] for i in range(len(shapes))]
        whole |= over
