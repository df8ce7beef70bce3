"""Labelled texts for the classifier: read, numbered, split and batched."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from data_prep.errors import DataError
from data_prep.recipe.data import CleanConfig
from pipeline.evaluate.labelled import chosen, read_labelled
from pipeline.evaluate.pooling import Framing
from pipeline.recipe.finetune import FinetuneConfig


class Texts(NamedTuple):
    """Texts, the number of each one's class, the class names, and who trains and who tests."""

    texts: list[str]
    labels: np.ndarray
    names: list[str]
    train: np.ndarray
    test: np.ndarray


def read_texts(section: FinetuneConfig, cleaning: CleanConfig, seed: int) -> Texts:
    """A seeded choice of `max_texts` and a seeded split that keeps the share of the classes.

    DataError when there are fewer than two classes, or too few texts of a class to test it.
    """
    rows = read_labelled(section.path, section.text_field, section.label_field, cleaning)
    rows = chosen(rows, section.max_texts, seed)
    names, labels = np.unique([str(row.label) for row in rows], return_inverse=True)
    if len(names) < 2:
        found = f"{len(rows)} texts with {len(names)} class(es) in {section.label_field!r}"
        raise DataError(f"{section.path}: {found}, expected 2 or more: check finetune.label_field")
    try:
        train, test = train_test_split(
            np.arange(len(rows)), test_size=section.test_share, stratify=labels, random_state=seed
        )
    except ValueError as error:
        hint = f"give more texts of each of the {len(names)} classes, or check finetune.label_field"
        raise DataError(f"{section.path}: cannot hold out a test set ({error}); {hint}") from None
    return Texts([row.text for row in rows], labels, names.tolist(), train, test)


class Batches:
    """Collates (ids, label) pairs to the arguments of the classifier and the labels."""

    def __init__(self, framing: Framing) -> None:
        self._framing = framing

    def __call__(self, rows: list[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor, Tensor]:
        """ids (B, T) int64, marks (B, T) bool, labels (B,) int64."""
        padded = self._framing.rows([ids for ids, _ in rows])
        return padded.ids, padded.marks, torch.tensor([label for _, label in rows])
