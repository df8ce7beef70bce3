"""Configuration of the multiplicative LSTM for `transformers`."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class MLSTMConfig(PretrainedConfig):
    """Sizes of the model; see `cell.py` for the equations."""

    model_type = "mlstm_lm"

    def __init__(
        self,
        vocab_size: int = 256,
        embedding_size: int = 64,
        hidden_size: int = 4096,
        num_hidden_layers: int = 1,
        weight_norm: bool = True,
        forget_bias: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.weight_norm = weight_norm
        self.forget_bias = forget_bias
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
