"""The uncertainty of an accuracy, for every evaluation that reports one."""

from __future__ import annotations

import numpy as np

_LEVEL = 0.95


def accuracy_interval(correct: np.ndarray, samples: int, seed: int) -> dict[str, float]:
    """Accuracy with the limits of its 95% percentile-bootstrap interval, all shares of 1.

    `correct` (n,) bool: whether each test text was classified rightly; n > 0.
    """
    accuracy = float(np.mean(correct))
    # n draws with replacement from n zeros and ones have a binomial number of ones.
    ones = np.random.default_rng(seed).binomial(len(correct), accuracy, samples)
    low, high = np.quantile(ones / len(correct), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return {"accuracy": accuracy, "low": float(low), "high": float(high)}
