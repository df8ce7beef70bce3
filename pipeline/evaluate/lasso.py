"""The classifier that is put on features: a logistic regression with an L1 penalty."""

from __future__ import annotations

from sklearn.linear_model import LogisticRegression

STRENGTHS = [2.0**power for power in range(-8, 1)]  # of C, as in Radford et al. 2017


def lasso(strength: float, seed: int) -> LogisticRegression:
    """The classifier at C = `strength`, not yet fitted."""
    return LogisticRegression(
        C=strength, l1_ratio=1.0, solver="liblinear", max_iter=1000, random_state=seed
    )
