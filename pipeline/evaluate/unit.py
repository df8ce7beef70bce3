"""One unit of an mLSTM: how its value spreads over texts, and its course over one of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.evaluate.model import LanguageModel

_BINS = 60


def histogram(values: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Counts of `values` of label 0 and 1 between common edges. The outer half percent on each
    side goes into the outermost bins, so that one value far out does not hide the shape."""
    low, high = np.quantile(values, [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    inside = np.clip(values, edges[0], edges[-1])
    counts = [np.histogram(inside[labels == label], edges)[0].tolist() for label in (0, 1)]
    return {"edges": edges.tolist(), "counts": counts}


@torch.no_grad()
def unit_over_text(model: LanguageModel, unit: int, text: str) -> list[float]:
    """The cell state of `unit`, in the last layer, after each character of `text`."""
    prefix = model.tokenizer.encode_prompt("")
    state = model.model.hidden(_row(model, prefix))[1] if len(prefix) else None
    values = []
    for character in text:
        # Encoded without the frame: the prefix has been read.
        ids = model.tokenizer.encode_prompt(character)[len(prefix) :]
        state = model.model.hidden(_row(model, ids), state)[1]
        values.append(float(state[0, -1, 0, unit]))
    return values


def _row(model: LanguageModel, ids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64)).unsqueeze(0).to(model.device)
