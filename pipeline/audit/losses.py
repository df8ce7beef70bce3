"""The loss of every token of many documents, each read from its own beginning."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from pipeline.evaluate.model import LanguageModel, batches

_BATCH_TOKENS = 4096  # of a Transformer, whose logits for all of them are in memory at once
_ROWS = 32  # documents that a recurrent model reads side by side
_STEPS = 128  # that it reads at a time


def text_nats(model: LanguageModel, texts: Sequence[str], title: str) -> list[np.ndarray]:
    """Nats of each token of each text, float64, in the order of `texts`.

    An mLSTM carries its state through a text; a Transformer reads windows of all its positions
    that do not overlap. A tokenizer without a frame leaves the first token unpredicted: 0 nats.
    """
    encoded = [model.tokenizer.encode_prompt(text).astype(np.int64) for text in texts]
    frame = len(model.tokenizer.encode_prompt(""))
    # (text, place of the window's first input), one a row
    length = model.position_limit or max(map(len, encoded), default=1)
    rows = [(i, at) for i, ids in enumerate(encoded) for at in range(0, len(ids) - 1, length)]
    found = [np.zeros(len(ids)) for ids in encoded]
    limits = (math.inf, _ROWS) if model.recurrent else (_BATCH_TOKENS, math.inf)
    with tqdm(total=len(rows), desc=title, unit="row", disable=None) as progress:
        for members in batches([len(encoded[i][at : at + length]) for i, at in rows], *limits):
            windows = [encoded[i][at : at + length + 1] for i, at in (rows[m] for m in members)]
            for member, nats in zip(members, _judge(model, windows), strict=True):
                i, at = rows[member]
                found[i][at + 1 : at + 1 + len(nats)] = nats
            progress.update(len(members))
    return [nats[frame:] for nats in found]


def _judge(model: LanguageModel, windows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Nats of every token but the first of each window."""
    longest = max(map(len, windows))
    ids = torch.zeros(len(windows), longest, dtype=torch.int64)
    for row, window in enumerate(windows):  # padded on the right, where no model looks
        ids[row, : len(window)] = torch.from_numpy(window)
    ids = ids.to(model.device)
    step = _STEPS if model.recurrent else longest
    losses, state = [], None
    for at in range(0, longest - 1, step):
        inputs, targets = ids[:, at : min(at + step, longest - 1)], ids[:, at + 1 : at + step + 1]
        nats, _, state = model.judge(inputs, targets.contiguous(), state)
        losses.append(nats.double().cpu().numpy())
    joined = np.concatenate(losses, axis=1)
    return [joined[row, : len(window) - 1] for row, window in enumerate(windows)]
