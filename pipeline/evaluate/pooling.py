"""One vector per text: how texts are framed, batched and pooled, for features and fine-tuning.

The mLSTM's vector is the cell state of the last layer after the last byte of the framed document.
Rows are padded on the left and the state is zeroed where the text begins, so padding has exactly no
influence. A Transformer's vector is the mean of the last hidden states over the text's tokens; rows
are padded on the right, where a causal model cannot look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_prep.tokenizers import Tokenizer
from pipeline.models.mlstm.modeling_mlstm import MLSTMForCausalLM

_STREAMED_STEPS = 128


class PooledRows(NamedTuple):
    """Padded rows (B, T): ids int64; marks bool, the first byte (mLSTM) or the pooled tokens."""

    ids: Tensor
    marks: Tensor

    def to(self, device: torch.device) -> PooledRows:
        return PooledRows(self.ids.to(device), self.marks.to(device))


class Framing:
    """Texts to ids as in training, and ids to padded rows, for one model and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self.recurrent = isinstance(model, MLSTMForCausalLM)
        self._tokenizer = tokenizer
        self.prefix = len(tokenizer.encode_prompt(""))  # tokens before the text's own

    def encode(self, texts: Sequence[str], limit: int | None) -> list[np.ndarray]:
        """Ids of each text, at most `limit` of them; only the mLSTM reads the closing frame."""
        if self.recurrent:
            rows = self._tokenizer.encode_documents(texts)
        else:
            rows = [self._tokenizer.encode_prompt(text) for text in texts]
        return [row[:limit] for row in rows]

    def rows(self, ids: Sequence[np.ndarray]) -> PooledRows:
        """Pad encoded texts to the longest of them."""
        longest = max(map(len, ids))
        padded = torch.zeros(len(ids), longest, dtype=torch.int64)
        marks = torch.zeros(len(ids), longest, dtype=torch.bool)
        for row, text in enumerate(ids):
            values = torch.from_numpy(text.astype(np.int64))
            if self.recurrent:
                padded[row, longest - len(text) :] = values
                marks[row, longest - len(text)] = True
            else:
                padded[row, : len(text)] = values
                marks[row, self.prefix : len(text)] = True
        return PooledRows(padded, marks)


def pooled(model: Any, rows: PooledRows) -> Tensor:
    """(B, d) vectors; gradients flow to the model's weights."""
    if isinstance(model, MLSTMForCausalLM):
        # The layers themselves: the model detaches the state that it gives back.
        x = model.embedding(rows.ids)
        for layer in model.mlstm.layers:
            x, state = layer(x, x.new_zeros(x.shape[0], 2, layer.hidden), rows.marks)
        return state[:, 0]
    hidden = model.base_model(input_ids=rows.ids, use_cache=False).last_hidden_state
    shares = rows.marks.unsqueeze(-1).to(hidden.dtype)
    return (hidden * shares).sum(dim=1) / shares.sum(dim=1)


@torch.no_grad()
def streamed(model: MLSTMForCausalLM, rows: PooledRows) -> Tensor:
    """The vectors of `pooled` for an mLSTM, a few steps at a time: memory for these is enough."""
    state = None
    for at in range(0, rows.ids.shape[1], _STREAMED_STEPS):
        here = slice(at, at + _STREAMED_STEPS)
        _, state = model.hidden(rows.ids[:, here], state, rows.marks[:, here])
    assert state is not None
    return state[:, -1, 0]


# Their first tokens have the positions behind that of the padding.
_PADDED_POSITIONS = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "longformer", "mpnet")


def position_limit(config: Any) -> int | None:
    """Tokens that a model can see at once, or None when it sets no limit."""
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
        if isinstance(found := getattr(config, key, None), int):
            padded = getattr(config, "model_type", None) in _PADDED_POSITIONS
            return found - (config.pad_token_id + 1 if padded else 0)
    return None
