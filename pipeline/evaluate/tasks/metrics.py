"""From judgements to what is reported of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.evaluate.accuracy import accuracy_interval, word_perplexity
from pipeline.evaluate.tasks.examples import Example
from pipeline.evaluate.tasks.scoring import Judgement

_RESAMPLES = 1000


def word_metrics(judgements: Sequence[Judgement], known: np.ndarray, seed: int) -> dict[str, Any]:
    """`accuracy` with its `interval`: the share of words of which the likeliest token is right at
    every one; `ppl_per_word`: the perplexity of the words. What stands for words that the
    vocabulary lacks, which are `unknown`, is never a hit and has no perplexity."""
    hits = known & np.array([judgement.greedy[0] for judgement in judgements])
    nats = -np.array([judgement.log_prob[0] for judgement in judgements])
    words = {"unknown": int(np.sum(~known)), "ppl_per_word": word_perplexity(nats, known)}
    return accuracy_interval(hits, _RESAMPLES, seed) | words


def choice_metrics(
    examples: Sequence[Example], judgements: Sequence[Judgement], seed: int
) -> dict[str, Any]:
    """`accuracy` and `accuracy_normalised` with their intervals, and `chance`.

    The plain choice is the likeliest option, the normalised one the likeliest per character. Of
    options that are all the same text, as WinoGrande's, both are one, and only the first is given.
    """
    pairs = list(zip(examples, judgements, strict=True))
    plain = np.array([j.log_prob.argmax() == e.right for e, j in pairs])
    found = accuracy_interval(plain, _RESAMPLES, seed)
    found["chance"] = float(np.mean([1 / len(e.options) for e in examples]))
    if any(len({*e.options}) > 1 for e in examples):
        lengths = [np.array([len(option) for option in e.options]) for e in examples]
        normalised = np.array([
            (j.log_prob / length).argmax() == e.right
            for (e, j), length in zip(pairs, lengths, strict=True)
        ])  # fmt: skip
        found |= {
            f"{key}_normalised": value
            for key, value in accuracy_interval(normalised, _RESAMPLES, seed).items()
        }
    return found
