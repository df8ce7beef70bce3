"""Accuracies with what is needed to read them: an interval, and that of the easiest answer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_LEVEL = 0.95


def word_perplexity(nats: np.ndarray, known: np.ndarray) -> float | None:
    """Of the words (n,) that the vocabulary has, from the nats of each; None where it has none."""
    return math.exp(min(float(nats[known].mean()), 700.0)) if known.any() else None


def accuracy_interval(correct: np.ndarray, samples: int, seed: int) -> dict[str, Any]:
    """`accuracy`, a share of 1, and `interval`, its 95% percentile-bootstrap limits.

    `correct` (n,) bool: whether each test text was classified rightly; n > 0.
    """
    accuracy = float(np.mean(correct))
    # n draws with replacement from n zeros and ones have a binomial number of ones.
    ones = np.random.default_rng(seed).binomial(len(correct), accuracy, samples)
    low, high = np.quantile(ones / len(correct), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return {"accuracy": accuracy, "interval": [float(low), float(high)]}


def majority_accuracy(labels: np.ndarray, test: np.ndarray) -> float:
    """Accuracy on the test indices of always saying the most frequent label of the others."""
    known = np.delete(labels, test)
    values, counts = np.unique(known, return_counts=True)
    return float(np.mean(labels[test] == values[counts.argmax()]))


def outcomes(correct: np.ndarray, texts: Sequence[str]) -> dict[str, str]:
    """`correct`, a 0 or 1 for each text, and `examples`, which texts these were: two models that
    judged the same ones can be compared text by text."""
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return {"correct": "".join(map(str, correct.astype(int))), "examples": digest[:16]}
