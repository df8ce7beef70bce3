"""The transfer protocol of Radford et al. 2017 and Puri et al. 2018 on one set of labelled texts.

Features of the exported model as they are; a logistic regression with an L1 penalty whose strength
C is chosen on validation texts and which is then fitted to the training texts alone; its strongest
single feature, fitted alone in the same way.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from data_prep.errors import DataError
from data_prep.recipe.data import CleanConfig
from pipeline.evaluate.accuracy import accuracy_interval, outcomes
from pipeline.evaluate.labelled import Labelled, chosen, read_labelled
from pipeline.evaluate.lasso import STRENGTHS, lasso
from pipeline.evaluate.model import LanguageModel
from pipeline.evaluate.unit import histogram, unit_over_text
from pipeline.progress import Progress
from pipeline.recipe.transfer import TransferConfig

_LEAST_OF_A_CLASS = 5
_BOOTSTRAP_SAMPLES = 1000
_SHOWN_CHARACTERS = 600


class _Part(NamedTuple):
    texts: list[str]
    labels: np.ndarray  # 0 or 1, in the order of the sorted label names


def transfer(
    model: LanguageModel, name: str, section: TransferConfig, cleaning: CleanConfig, seed: int
) -> dict[str, Any]:
    """Accuracies on the test texts, of all features and of the strongest alone, and what they rest
    on. For an mLSTM also that unit's histogram over the classes and its course over two texts.

    DataError when a file is not what the section says, has other than two labels, or too few texts.
    """
    parts, label_names = _read(name, section, cleaning, seed)
    began = time.monotonic()
    features = [model.features(part.texts) for part in parts]
    seconds = time.monotonic() - began
    fitted = [(found, part.labels) for found, part in zip(features, parts, strict=True)]
    everything, strength, correct = _judge(fitted, seed)
    weights = everything.coef_[0]
    unit = int(np.abs(weights).argmax())
    alone, _, unit_correct = _judge([(found[:, [unit]], y) for found, y in fitted], seed)
    unit_found = accuracy_interval(unit_correct, _BOOTSTRAP_SAMPLES, seed)
    sizes = {"train": len(parts[0].texts), "validation": len(parts[1].texts)}
    test = parts[2]
    return {
        "texts": sizes | {"test": len(test.texts)},
        "labels": label_names,
        **accuracy_interval(correct, _BOOTSTRAP_SAMPLES, seed),
        "C": strength,
        "features": features[0].shape[1],
        "nonzero_weights": int(np.count_nonzero(weights)),
        "unit": unit,
        "unit_sign": int(np.sign(alone.coef_[0, 0])),
        **{f"unit_{key}": value for key, value in unit_found.items()},
        "majority_accuracy": float(max(test.labels.mean(), 1 - test.labels.mean())),
        "texts_per_second": sum(len(part.texts) for part in parts) / seconds,
        **outcomes(correct, test.texts),
        "histogram": histogram(features[2][:, unit], test.labels),
        "courses": _courses(model, unit, features[2][:, unit], test) if model.recurrent else [],
    }


def _judge(
    parts: list[tuple[np.ndarray, np.ndarray]], seed: int
) -> tuple[LogisticRegression, float, np.ndarray]:
    """The classifier at the C that is best on validation, that C, and whether each test text was
    judged rightly."""
    (train, train_labels), (validation, validation_labels), (test, test_labels) = parts

    models = []
    with Progress("classifiers", len(STRENGTHS), "fit") as progress:
        for strength in STRENGTHS:
            models.append(lasso(strength, seed).fit(train, train_labels))
            progress.update()
    best = int(np.argmax([model.score(validation, validation_labels) for model in models]))
    return models[best], STRENGTHS[best], models[best].predict(test) == test_labels


def _read(
    name: str, section: TransferConfig, cleaning: CleanConfig, seed: int
) -> tuple[list[_Part], list[str]]:
    """Train, validation and test, and the names of the two labels in order."""
    train = _texts(section.train, section, cleaning, seed)
    if section.test:
        test = _texts(section.test, section, cleaning, seed)
    else:
        train, test = _cut(name, train, section.test_share, seed)
    if section.validation:
        validation = _texts(section.validation, section, cleaning, seed)
    else:
        train, validation = _cut(name, train, section.validation_share, seed)
    names = sorted({str(text.label) for text in [*train, *validation, *test]})
    if len(names) != 2:
        shown = ", ".join(names[:5]) or "none"
        raise DataError(
            f"eval.transfer.{name}: {len(names)} labels in {section.label_field!r} ({shown}), "
            "expected 2: check label_field"
        )
    parts = [
        _Part([t.text for t in texts], np.array([names.index(str(t.label)) for t in texts]))
        for texts in (train, validation, test)
    ]
    for part, what in zip(parts, ("train", "validation", "test"), strict=True):
        counts = np.bincount(part.labels, minlength=2)
        if counts.min() < _LEAST_OF_A_CLASS:
            found = " and ".join(
                f"{n} of {label!r}" for n, label in zip(counts, names, strict=True)
            )
            raise DataError(
                f"eval.transfer.{name}: the {what} texts are {found}, at least "
                f"{_LEAST_OF_A_CLASS} of each are needed: give more texts"
            )
    return parts, names


def _texts(path: str, section: TransferConfig, cleaning: CleanConfig, seed: int) -> list[Labelled]:
    found = read_labelled(path, section.text_field, section.label_field, cleaning)
    return chosen(found, section.max_texts, seed)


def _cut(
    name: str, texts: list[Labelled], share: float, seed: int
) -> tuple[list[Labelled], list[Labelled]]:
    labels = [str(text.label) for text in texts]
    try:
        rest, cut = train_test_split(texts, test_size=share, stratify=labels, random_state=seed)
    except ValueError as error:
        raise DataError(
            f"eval.transfer.{name}: cannot be split ({error}): give more texts"
        ) from None
    return rest, cut


def _courses(
    model: LanguageModel, unit: int, values: np.ndarray, test: _Part
) -> list[dict[str, Any]]:
    """The unit over the test texts at whose ends it is lowest and highest, of those short enough
    to be shown."""
    short = np.array([len(text) <= _SHOWN_CHARACTERS for text in test.texts])
    if not short.any():
        return []
    places = np.flatnonzero(short)
    ends = {int(places[values[places].argmin()]), int(places[values[places].argmax()])}
    return [
        {
            "text": test.texts[place],
            "label": int(test.labels[place]),
            "values": unit_over_text(model, unit, test.texts[place]),
        }
        for place in sorted(ends, key=lambda place: values[place])
    ]
