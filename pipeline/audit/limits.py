"""How much an audit reads and writes; more is slower and narrows the intervals."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """The defaults take minutes on two CPU cores for a model of a few million weights."""

    documents: int = 400  # of a split, judged and prompted with
    train_tokens: int = 2_000_000  # read to count words and to find personal data
    prompt_tokens: int = 50  # of a training document, given to the model
    continuation_tokens: int = 50  # that it must then write verbatim
    texts: int = 1000  # labelled, that the sentiment classifier is fitted to
    samples: int = 50  # texts that the model writes freely
    sample_tokens: int = 200  # of each of them
    seed: int = 0
