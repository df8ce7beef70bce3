"""Metrics and intervals against scikit-learn on texts that are really drawn again."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, roc_auc_score

from pipeline.finetune.metrics import auroc, better, intervals, judge, of_confusions


def case(classes: int, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that know something of the labels, with ties."""
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, n)
    scores = random.random((n, classes)) + np.eye(classes)[labels] * 0.6
    scores = scores.round(1) + 0.01
    return scores / scores.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_confusions_give_what_scikit_learn_gives(classes: int) -> None:
    probabilities, labels = case(classes)
    found = probabilities.argmax(axis=1)
    cells = np.zeros((classes, classes), int)
    np.add.at(cells, (labels, found), 1)
    values = {name: value[0] for name, value in of_confusions(cells[None]).items()}
    assert values["accuracy"] == pytest.approx(accuracy_score(labels, found))
    assert values["macro_f1"] == pytest.approx(f1_score(labels, found, average="macro"))
    assert values["mcc"] == pytest.approx(matthews_corrcoef(labels, found))
    assert ("f1" in values) == (classes == 2)
    told = judge(probabilities, labels)
    assert all(told[name] == pytest.approx(value) for name, value in values.items())


def test_the_auroc_of_counts_is_that_of_repeated_texts() -> None:
    probabilities, labels = case(2, 60)
    counts = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60))
    ranks = np.unique(probabilities[:, 1], return_inverse=True)[1]
    expected = roc_auc_score(labels.repeat(counts), probabilities[:, 1].repeat(counts))
    assert auroc(ranks, labels == 1, counts) == pytest.approx(expected)
    assert np.isnan(auroc(ranks, labels == 1, counts * (labels == 1)))


@pytest.mark.parametrize("classes", [2, 3])
def test_intervals_are_those_of_texts_drawn_again(classes: int) -> None:
    probabilities, labels = case(classes)
    fast = intervals(probabilities, labels, 2000, seed=1)
    random = np.random.default_rng(2)
    drawn = []
    for _ in range(200):
        places = random.integers(0, len(labels), len(labels))
        drawn.append(judge(probabilities[places], labels[places]))
    for name, limits in fast.items():
        values = [one[name] for one in drawn]
        assert limits == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.03), name
    assert fast == intervals(probabilities, labels, 2000, seed=1)


def test_a_class_without_texts_has_no_auroc() -> None:
    probabilities, labels = case(3)
    some = labels < 2
    assert judge(probabilities[some], labels[some])["auroc"] is None
    assert intervals(probabilities[some], labels[some], 20, seed=0)["auroc"] is None


def test_a_lower_loss_and_a_higher_share_are_better() -> None:
    assert better("loss", 0.1, 0.2) and not better("loss", 0.2, 0.2)
    assert better("mcc", 0.2, 0.1) and not better("mcc", 0.1, 0.1) and better("mcc", -1.0, None)
