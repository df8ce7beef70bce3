"""Accuracy, F1, MCC and AUROC of a classifier, each with its bootstrap interval.

The values are scikit-learn's. For the intervals texts are drawn with replacement. What a draw does
to a confusion matrix is a multinomial draw of its cells, so a thousand of them cost nothing; the
AUROC is taken from the drawn counts of texts in the order of their scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    matthews_corrcoef,
    roc_auc_score,
)

_LIMITS = (0.025, 0.975)


def judge(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """`probabilities` (n, C) of n > 0 texts, `labels` (n,) their class numbers.

    `f1`, of class 1, only for two classes; `auroc` is that of class 1 for two, else the mean of
    each class against the rest, and None where a class has no text or all texts.
    """
    classes = probabilities.shape[1]
    found = probabilities.argmax(axis=1)
    every = range(classes)
    values: dict[str, float | None] = {
        "loss": float(log_loss(labels, probabilities, labels=list(every))),
        "accuracy": float(accuracy_score(labels, found)),
        "macro_f1": float(
            f1_score(labels, found, labels=list(every), average="macro", zero_division=0)
        ),
        "mcc": float(matthews_corrcoef(labels, found)),
        "auroc": None,
    }
    if classes == 2:
        values["f1"] = float(f1_score(labels, found, zero_division=0))
    if len(np.unique(labels)) == classes:
        scores = probabilities[:, 1] if classes == 2 else probabilities
        values["auroc"] = float(roc_auc_score(labels, scores, multi_class="ovr"))
    return values


def intervals(
    probabilities: np.ndarray, labels: np.ndarray, samples: int, seed: int
) -> dict[str, list[float] | None]:
    """95 % percentile-bootstrap limits of what `judge` gives, less the loss (Efron 1979)."""
    random = np.random.default_rng(seed)
    classes = probabilities.shape[1]
    cells = confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(classes))
    drawn = random.multinomial(len(labels), (cells / cells.sum()).ravel(), samples)
    values = of_confusions(drawn.reshape(samples, classes, classes))
    values["auroc"] = _drawn_auroc(probabilities, labels, samples, random)
    return {name: _limits(found) for name, found in values.items()}


def of_confusions(cells: np.ndarray) -> dict[str, np.ndarray]:
    """accuracy, macro_f1, mcc and, for two classes, f1 (S,) of S confusion matrices (S, C, C),
    rows the true classes, all of n texts."""
    cells = cells.astype(float)
    right, true, said = (
        np.diagonal(cells, axis1=1, axis2=2), cells.sum(axis=2), cells.sum(axis=1)
    )  # fmt: skip
    n = true.sum(axis=1)
    f1 = 2 * right / np.maximum(true + said, 1)
    # Gorodkin 2004, equation 8.
    above = right.sum(axis=1) * n - (true * said).sum(axis=1)
    below = np.sqrt((n**2 - (said**2).sum(axis=1)) * (n**2 - (true**2).sum(axis=1)))
    values = {
        "accuracy": right.sum(axis=1) / n,
        "macro_f1": f1.mean(axis=1),
        "mcc": np.divide(above, below, out=np.zeros_like(above), where=below > 0),
    }
    return values | ({"f1": f1[:, 1]} if cells.shape[1] == 2 else {})


def auroc(ranks: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> float:
    """The share of pairs of a positive and a negative text that are ranked rightly, ties by half.

    `ranks` (n,) are small numbers, equal for equal scores; `counts` (n,) says how often each text
    occurs. NaN without a pair.
    """
    good = np.bincount(ranks, counts * positive)
    bad = np.bincount(ranks, counts * ~positive)
    pairs = good.sum() * bad.sum()
    return float((good * (bad.cumsum() - bad / 2)).sum() / pairs) if pairs else float("nan")


def _drawn_auroc(
    probabilities: np.ndarray, labels: np.ndarray, samples: int, random: np.random.Generator
) -> np.ndarray:
    classes = probabilities.shape[1]
    judged = [1] if classes == 2 else range(classes)
    # Ranks once: only how often each text occurs changes from draw to draw.
    ranks = {c: np.unique(probabilities[:, c], return_inverse=True)[1] for c in judged}
    even = np.full(len(labels), 1 / len(labels))
    found = np.empty(samples)
    for sample in range(samples):
        counts = random.multinomial(len(labels), even)
        found[sample] = np.mean([auroc(ranks[c], labels == c, counts) for c in judged])
    return found


def _limits(values: np.ndarray) -> list[float] | None:
    """None where no draw has a value."""
    if np.isnan(values).all():
        return None
    return [float(limit) for limit in np.nanquantile(values, _LIMITS)]


def better(metric: str, value: float, best: float | None) -> bool:
    """Whether a look at the validation texts beats the best one so far."""
    if best is None:
        return True
    return value < best if metric == "loss" else value > best


def summary(
    probabilities: np.ndarray, labels: np.ndarray, samples: int, seed: int
) -> dict[str, Any]:
    """What `judge` gives, `interval` of the accuracy and `intervals` of everything."""
    found = intervals(probabilities, labels, samples, seed)
    return {**judge(probabilities, labels), "interval": found["accuracy"], "intervals": found}
