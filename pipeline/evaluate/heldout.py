"""Held-out loss of an exported model over a split, in every unit of `pipeline.data.units`.

A recurrent model walks the split in parallel lanes and carries its state, zeroed where the split
says so. A Transformer reads windows that do not overlap. Every token but the first is predicted
exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data_prep.errors import DataError
from data_prep.shards import Split
from pipeline.data.units import loss_units
from pipeline.evaluate.model import LanguageModel


def heldout(
    model: LanguageModel, split: Split, window: int, batch: int, max_tokens: int
) -> dict[str, Any]:
    """Mean loss over the first `max_tokens` predicted tokens of `split`, and how many there were.

    `top1` and `top10` are the shares of tokens that were the likeliest, or among the ten. A head
    without probabilities has these alone.

    `batch` is the number of lanes or windows computed at once. DataError when the split is empty.
    """
    tokens = min(split.tokens - 1, max_tokens)
    if tokens < 1 or not split.bytes:
        raise DataError(
            f"the {split.name} split holds {split.tokens} tokens, at least 2 are needed: raise "
            f"data.split.{split.name} or give more text"
        )
    total, hits = 0.0, {1: 0, 10: 0}
    with tqdm(total=tokens, desc=f"{split.name} loss", unit="tok", disable=None) as progress:
        for rows in _row_groups(tokens, window, batch, model.recurrent):
            for losses, ranks in _walk(model, split, rows, window):
                total += float(losses.sum())
                hits = {k: n + int((ranks < k).sum()) for k, n in hits.items()}
                progress.update(len(losses))
    units = loss_units(total / tokens, split) if model.has_probabilities else {}
    return units | {f"top{k}": n / tokens for k, n in hits.items()} | {"tokens": tokens}


def _row_groups(tokens: int, window: int, batch: int, recurrent: bool) -> Iterator[list[range]]:
    """Pieces of the stream [0, tokens) to read side by side: all lanes, or some windows."""
    windows = math.ceil(tokens / window)
    length = math.ceil(tokens / min(batch, windows)) if recurrent else window
    pieces = [range(at, min(at + length, tokens)) for at in range(0, tokens, length)]
    for first in range(0, len(pieces), batch):
        yield pieces[first : first + batch]


def _walk(
    model: LanguageModel, split: Split, rows: list[range], window: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """float64 losses and ranks of the tokens after each place of `rows`, one window of all rows at
    a time."""
    state: Tensor | None = None
    for at in range(0, len(rows[0]), window):
        # Only the last row can be shorter than the others: rows that have ended are a tail.
        pieces = [piece for row in rows if len(piece := row[at : at + window])]
        longest = len(pieces[0])
        ids = np.zeros((len(pieces), longest + 1), np.int64)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece) + 1] = split.read(piece.start, piece.stop + 1)
        resets = split.resets(np.array([piece.start for piece in pieces]), longest)
        inputs, targets, zeroed = (
            torch.from_numpy(part).to(model.device) for part in (ids[:, :-1], ids[:, 1:], resets)
        )
        state = None if state is None else state[: len(pieces)]
        losses, ranks, state = model.judge(inputs, targets.contiguous(), state, zeroed)
        real = torch.tensor([len(piece) for piece in pieces]).unsqueeze(1) > torch.arange(longest)
        real = real.to(model.device)
        yield losses.double()[real], ranks[real]
