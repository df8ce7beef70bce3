"""Which texts an optimizer step sees, and how they are laid side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.seeds import derive_key


class Encoded(NamedTuple):
    """The ids of each text and the number of its class, int64."""

    ids: list[list[int]]
    labels: np.ndarray


def encode(tokenizer: object, texts: Sequence[str], most: int) -> list[list[int]]:
    """Ids of each text, at most `most` of them, framing included."""
    found = tokenizer(list(texts), truncation=True, max_length=most)["input_ids"]  # type: ignore[operator]
    return found


class Order:
    """The texts of every step: shuffled anew in each epoch by the seed alone, whatever the number
    of processes. An epoch's rest begins the next one's first step, so that all steps are full."""

    def __init__(self, texts: int, batch: int, seed: int) -> None:
        self._texts, self._batch = texts, batch
        self._epoch = lru_cache(2)(
            lambda epoch: np.random.default_rng(derive_key(seed, "finetune", epoch)).permutation(
                texts
            )
        )

    def step(self, number: int) -> np.ndarray:
        """Places of the texts of one step, counted from 0."""
        places = np.arange(number * self._batch, (number + 1) * self._batch)
        return np.array([self._epoch(int(p // self._texts))[p % self._texts] for p in places])


def padded(rows: Sequence[list[int]], fill: int) -> dict[str, Tensor]:
    """input_ids and attention_mask (B, T), filled up on the right."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), fill, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def class_weights(
    setting: str | dict[str, float], labels: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """A weight for every class, 1 in the mean over the texts of `labels`.

    KeyError names the classes that a given setting leaves out.
    """
    counts = np.bincount(labels, minlength=len(names))
    if isinstance(setting, dict):
        if missing := [name for name in names if name not in setting]:
            raise KeyError(*missing)
        weights = np.array([setting[name] for name in names], dtype=float)
    else:
        weights = np.ones(len(names)) if setting == "none" else 1 / np.maximum(counts, 1)
    return weights * counts.sum() / (weights * counts).sum()
