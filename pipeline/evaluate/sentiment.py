"""Sentiment of rated texts from the features of a language model.

An L1 logistic regression on standardised features, as in Radford et al. 2017, beside two
baselines on the same texts: the most frequent class, and a logistic regression on TF-IDF of words
and word pairs. Every text is judged once, by a classifier that never saw it (cross-validation), and
each classifier's strength C is chosen on validation texts inside its own training share.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median_low
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from data_prep.errors import DataError
from data_prep.recipe.data import CleanConfig
from pipeline.evaluate.accuracy import accuracy_interval, outcomes
from pipeline.evaluate.labelled import read_labelled
from pipeline.evaluate.lasso import STRENGTHS, lasso
from pipeline.evaluate.model import LanguageModel
from pipeline.progress import Progress
from pipeline.recipe.evaluation import SentimentConfig

_VALIDATION_SHARE = 0.25  # of a fold's training texts
_TFIDF_STRENGTHS = [2.0**power for power in range(-2, 7, 2)]
_LEAST_OF_A_CLASS = 10


def sentiment(
    model: LanguageModel, section: SentimentConfig, cleaning: CleanConfig, seed: int
) -> dict[str, Any]:
    """Accuracy over all rated texts with its interval, and what it rests on.

    Texts rated between the two thresholds are left out. DataError when the file is not what the
    section says or holds fewer than 10 texts of a class.
    """
    texts, labels = rated_texts(section, cleaning)
    started = time.monotonic()
    features = model.features(texts)
    seconds = time.monotonic() - started

    folds = list(
        StratifiedKFold(section.folds, shuffle=True, random_state=seed).split(texts, labels)
    )
    on_features = lambda c: _feature_classifier(c, seed)  # noqa: E731
    correct, strength = _judge(on_features, STRENGTHS, features, labels, folds)
    words = np.array(texts, dtype=object)
    right, word_strength = _judge(_word_classifier, _TFIDF_STRENGTHS, words, labels, folds)
    weights = on_features(strength).fit(features, labels)[-1].coef_
    tfidf = accuracy_interval(right, section.bootstrap_samples, seed)
    return {
        "texts": len(texts),
        "positive_share": float(labels.mean()),
        "folds": section.folds,
        **accuracy_interval(correct, section.bootstrap_samples, seed),
        "features": features.shape[1],
        "nonzero_weights": int(np.count_nonzero(weights)),
        "C": strength,
        "majority_accuracy": float(max(labels.mean(), 1 - labels.mean())),
        **{f"tfidf_{key}": value for key, value in tfidf.items()},
        "tfidf_C": word_strength,
        "texts_per_second": len(texts) / seconds,
        **outcomes(correct, texts),
    }


def rated_texts(section: SentimentConfig, cleaning: CleanConfig) -> tuple[list[str], np.ndarray]:
    """Texts and labels, 0 negative and 1 positive, of those not rated between the thresholds.
    DataError as `sentiment`."""
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


def _judge(
    make: Callable[[float], Pipeline],
    strengths: list[float],
    inputs: np.ndarray,
    labels: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, float]:
    """Whether each text was judged right by the fold that held it out, and the median C."""
    correct, chosen = np.empty(len(labels), dtype=bool), []
    with Progress("classifiers", len(folds) * (len(strengths) + 1), "fit") as progress:

        def fit(c: float, rows: np.ndarray) -> Pipeline:
            fitted = make(c).fit(inputs[rows], labels[rows])
            progress.update()
            return fitted

        for rest, test in folds:
            train, validation = train_test_split(
                rest, test_size=_VALIDATION_SHARE, stratify=labels[rest], random_state=0
            )
            scores = [
                fit(c, train).score(inputs[validation], labels[validation]) for c in strengths
            ]
            chosen.append(strengths[int(np.argmax(scores))])
            correct[test] = fit(chosen[-1], rest).predict(inputs[test]) == labels[test]
    return correct, median_low(chosen)


def _feature_classifier(strength: float, seed: int) -> Pipeline:
    return make_pipeline(StandardScaler(), lasso(strength, seed))


def _word_classifier(strength: float) -> Pipeline:
    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=strength, max_iter=1000)
    )
