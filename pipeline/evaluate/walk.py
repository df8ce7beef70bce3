"""Losses along a stream of tokens, each token but the first predicted exactly once.

A recurrent model walks the stream in parallel lanes and carries its state, zeroed where the stream
says so. A Transformer reads windows; where they overlap, the tokens that an earlier window has
predicted are context alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluate.model import LanguageModel
from pipeline.progress import Progress


class Stream(Protocol):
    """What is read: a split, or one text."""

    name: str

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids [start, stop)."""

    def resets(self, starts: np.ndarray, length: int) -> np.ndarray:
        """(len(starts), length) bool: where a state is zeroed, in the windows from each offset."""


class Reading(NamedTuple):
    """How to read: `window` and `stride` in tokens, `batch` lanes or windows side by side.

    A window begins `stride` tokens after the one before it, so every token but those of the first
    window is predicted after at least `window - stride` tokens. Lanes know no stride.
    """

    window: int
    stride: int
    batch: int


class Total(NamedTuple):
    """Sum of losses in nats, and how many targets were the likeliest token, or among ten."""

    nats: float
    top1: int
    top10: int


class _Row(NamedTuple):
    places: range  # of the inputs
    judged_from: int  # the first place whose prediction counts


def walk(model: LanguageModel, stream: Stream, places: range, reading: Reading) -> Total:
    """The loss of the tokens after each of `places`; what lies before them is read, not judged."""
    nats, hits = 0.0, {1: 0, 10: 0}
    with Progress(f"{stream.name} loss", len(places), "token") as progress:
        for rows in _row_groups(places, reading, model.recurrent):
            for losses, ranks in _judge(model, stream, rows, reading.window):
                nats += float(losses.sum())
                hits = {k: n + int((ranks < k).sum()) for k, n in hits.items()}
                progress.update(len(losses))
    return Total(nats, hits[1], hits[10])


def _row_groups(places: range, reading: Reading, recurrent: bool) -> Iterator[list[_Row]]:
    """Pieces of the stream [0, places.stop) to read side by side: all lanes, or some windows."""
    tokens, length, step = places.stop, reading.window, reading.stride
    if recurrent:
        length = step = math.ceil(tokens / min(reading.batch, math.ceil(tokens / reading.window)))
    starts = range(0, max(1, tokens - length + step), step)
    rows = [
        _Row(
            range(at, min(at + length, tokens)), max(places.start, at + length - step if at else 0)
        )
        for at in starts
    ]
    for first in range(0, len(rows), reading.batch):
        yield rows[first : first + reading.batch]


def _judge(
    model: LanguageModel, stream: Stream, rows: list[_Row], window: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """float64 losses and ranks of the tokens after each place that counts, one window of all rows
    at a time."""
    state: Tensor | None = None
    judged_from = torch.tensor([row.judged_from for row in rows]).unsqueeze(1)
    for at in range(0, len(rows[0].places), window):
        # Only the last row can be shorter than the others: rows that have ended are a tail.
        pieces = [piece for row in rows if len(piece := row.places[at : at + window])]
        longest = len(pieces[0])
        ids = np.zeros((len(pieces), longest + 1), np.int64)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece) + 1] = stream.read(piece.start, piece.stop + 1)
        starts = np.array([piece.start for piece in pieces])
        resets = stream.resets(starts, longest)
        inputs, targets, zeroed = (
            torch.from_numpy(part).to(model.device) for part in (ids[:, :-1], ids[:, 1:], resets)
        )
        state = None if state is None else state[: len(pieces)]
        losses, ranks, state = model.judge(inputs, targets.contiguous(), state, zeroed)
        columns = torch.arange(longest)
        counts = torch.from_numpy(starts).unsqueeze(1) + columns >= judged_from[: len(pieces)]
        counts &= torch.tensor([len(piece) for piece in pieces]).unsqueeze(1) > columns
        counts = counts.to(model.device)
        yield losses.double()[counts], ranks[counts]
