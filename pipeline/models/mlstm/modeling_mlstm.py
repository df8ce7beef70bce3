"""The multiplicative LSTM language model for `transformers`.

model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
out = model(input_ids)            # logits (B, T, V), state after the last token
out = model(next_ids, state=out.state)
model.generate(input_ids, clamp={7: 1.5})      # unit 7 of the last layer held at 1.5
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .cell import MultiplicativeLSTM
from .configuration_mlstm import MLSTMConfig


@dataclass
class MLSTMOutput(ModelOutput):
    """logits (B, T, V); state (B, layers, 2, H), cell state first; hidden_states (B, T, H)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: Tensor | None = None
    hidden_states: Tensor | None = None


class MLSTMForCausalLM(PreTrainedModel, GenerationMixin):
    """Byte embedding, recurrent layers, output matrix with bias."""

    config_class = MLSTMConfig
    base_model_prefix = "mlstm"
    main_input_name = "input_ids"
    _is_stateful = True

    def __init__(self, config: MLSTMConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.mlstm = MultiplicativeLSTM.from_config(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every module initialises itself when it is made (see `cell.py`); nothing to redo."""

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def hidden(
        self, input_ids: Tensor, state: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, H) of the last layer and the state after the last token."""
        return self.mlstm(self.embedding(input_ids), state, resets)

    def forward(
        self,
        input_ids: Tensor,
        state: Tensor | None = None,
        labels: Tensor | None = None,
        clamp: dict[int, float] | None = None,
        **kwargs: Any,
    ) -> MLSTMOutput:
        """`clamp` sets cell states of the last layer after the last token, for what comes next."""
        hidden, state = self.hidden(input_ids, state)
        for unit, value in (clamp or {}).items():
            state[:, -1, 0, unit] = value
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten()
            )
        return MLSTMOutput(loss=loss, logits=logits, state=state, hidden_states=hidden)

    # Generation feeds one token at a time and carries the state instead of a key-value cache.

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        state: Tensor | None = None,
        clamp: dict[int, float] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        ids = input_ids if state is None else input_ids[:, -1:]
        return {"input_ids": ids, "state": state, "clamp": clamp}

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        model_kwargs["state"] = outputs["state"]
        return model_kwargs

    @staticmethod
    def _reorder_cache(state: Tensor, beam_idx: Tensor) -> Tensor:
        return torch.index_select(state, 0, beam_idx)
