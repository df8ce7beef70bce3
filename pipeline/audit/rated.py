"""Texts with two labels from the files that a recipe judges sentiment by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.evaluate.labelled import read_labelled
from pipeline.evaluate.sentiment import rated_texts
from pipeline.recipe import Recipe


class Rated(NamedTuple):
    """Texts, label 0 or 1 of each (n,), what the two stand for, and where they are from."""

    texts: list[str]
    labels: np.ndarray
    names: tuple[str, str]
    origin: str


def read_rated(recipe: Recipe) -> Rated | None:
    """The texts of `eval.sentiment`, else the training texts of the first set of `eval.transfer`
    with two labels; None where the recipe names neither. DataError as in those evaluations."""
    clean = recipe.data.clean
    if recipe.eval.sentiment:
        texts, labels = rated_texts(recipe.eval.sentiment, clean)
        return Rated(texts, labels, ("negative", "positive"), recipe.eval.sentiment.path)
    for section in recipe.eval.transfer.values():
        found = read_labelled(section.train, section.text_field, section.label_field, clean)
        names = sorted({str(text.label) for text in found})
        if len(names) == 2:
            labels = np.array([names.index(str(text.label)) for text in found])
            pair = (names[0], names[1])
            return Rated([text.text for text in found], labels, pair, section.train)
    return None
