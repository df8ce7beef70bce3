"""Sentiment of rated texts from the features of a language model.

An L1 logistic regression on standardised features, as in Radford et al. 2017, beside two
baselines on the same test texts: the most frequent class, and a logistic regression on TF-IDF of
words and word pairs. Each regression's strength C is chosen on validation texts; the test texts
are used once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from data_prep.errors import DataError
from data_prep.recipe.data import CleanConfig
from pipeline.evaluate.accuracy import accuracy_interval, majority_accuracy
from pipeline.evaluate.labelled import read_labelled
from pipeline.evaluate.model import LanguageModel
from pipeline.recipe.evaluation import SentimentConfig

_VALIDATION_SHARE = 0.25  # of the texts that are not test texts
_FEATURE_STRENGTHS = [2.0**power for power in range(-8, 1)]
_TFIDF_STRENGTHS = [2.0**power for power in range(-2, 7)]
_LEAST_OF_A_CLASS = 10


class Parts(NamedTuple):
    """Indices of the texts for fitting, for choosing C, and for the accuracy."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def sentiment(
    model: LanguageModel, section: SentimentConfig, cleaning: CleanConfig, seed: int
) -> dict[str, Any]:
    """Accuracy on the test texts with its interval, and what it rests on.

    Texts rated between the two thresholds are left out. DataError when the file is not what the
    section says or holds fewer than 10 texts of a class.
    """
    texts, labels = _rated_texts(section, cleaning)
    parts = _parts(labels, section.test_share, seed)
    started = time.monotonic()
    features = model.features(texts)
    seconds = time.monotonic() - started

    def judge(fitted: Pipeline, inputs: Sequence[Any]) -> dict[str, Any]:
        correct = fitted.predict(inputs) == labels[parts.test]
        return accuracy_interval(correct, section.bootstrap_samples, seed)

    on_features = lambda c: _feature_classifier(c, seed)  # noqa: E731
    fitted, strength = _fit_best(on_features, _FEATURE_STRENGTHS, features, labels, parts)
    words = np.array(texts, dtype=object)
    on_words, word_strength = _fit_best(_word_classifier, _TFIDF_STRENGTHS, words, labels, parts)
    return {
        "texts": len(texts),
        "positive_share": float(labels.mean()),
        "train_texts": len(parts.train),
        "validation_texts": len(parts.validation),
        "test_texts": len(parts.test),
        **judge(fitted, features[parts.test]),
        "features": features.shape[1],
        "nonzero_weights": int(np.count_nonzero(fitted[-1].coef_)),
        "C": strength,
        "majority_accuracy": majority_accuracy(labels, parts.test),
        **{f"tfidf_{k}": v for k, v in judge(on_words, words[parts.test]).items()},
        "tfidf_C": word_strength,
        "texts_per_second": len(texts) / seconds,
    }


def _rated_texts(section: SentimentConfig, cleaning: CleanConfig) -> tuple[list[str], np.ndarray]:
    """Texts and labels, 0 negative and 1 positive."""
    texts, labels = [], []
    for text, score, place in read_labelled(
        section.path, section.text_field, section.score_field, cleaning
    ):
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise DataError(
                f"{place}: {section.score_field!r} holds {score!r:.40}, expected a number"
            )
        if score < section.negative_below or score > section.positive_above:
            texts.append(text)
            labels.append(int(score > section.positive_above))
    negative, positive = labels.count(0), labels.count(1)
    if min(negative, positive) < _LEAST_OF_A_CLASS:
        raise DataError(
            f"{section.path}: {negative} negative and {positive} positive texts, at least "
            f"{_LEAST_OF_A_CLASS} of each are needed: check eval.sentiment.negative_below, "
            "positive_above and score_field"
        )
    return texts, np.array(labels)


def _parts(labels: np.ndarray, test_share: float, seed: int) -> Parts:
    """A seeded split that keeps the share of the classes."""
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=test_share, stratify=labels, random_state=seed
    )
    train, validation = train_test_split(
        rest, test_size=_VALIDATION_SHARE, stratify=labels[rest], random_state=seed
    )
    return Parts(train, validation, test)


def _fit_best(
    make: Callable[[float], Pipeline],
    strengths: list[float],
    inputs: np.ndarray,
    labels: np.ndarray,
    parts: Parts,
) -> tuple[Pipeline, float]:
    """The classifier with the best C on the validation texts (the least on a tie), fitted on all
    texts but the test texts."""

    def fit(strength: float, rows: np.ndarray) -> Pipeline:
        return make(strength).fit(inputs[rows], labels[rows])

    scores = [
        fit(c, parts.train).score(inputs[parts.validation], labels[parts.validation])
        for c in strengths
    ]
    best = strengths[int(np.argmax(scores))]
    return fit(best, np.concatenate([parts.train, parts.validation])), best


def _feature_classifier(strength: float, seed: int) -> Pipeline:
    lasso = LogisticRegression(
        C=strength, l1_ratio=1.0, solver="liblinear", max_iter=1000, random_state=seed
    )
    return make_pipeline(StandardScaler(), lasso)


def _word_classifier(strength: float) -> Pipeline:
    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=strength, max_iter=1000)
    )
