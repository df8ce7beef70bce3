"""A classifier on the multiplicative LSTM for `transformers`: the cell state after a text's last
byte, and a linear layer.

model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
model(**tokenizer("A fine film.", return_tensors="pt")).logits
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .cell import MultiplicativeLSTM
from .configuration_mlstm import MLSTMConfig


class MLSTMForSequenceClassification(PreTrainedModel):
    """Byte embedding, recurrent layers, and `score` on the last layer's last cell state."""

    config_class = MLSTMConfig
    base_model_prefix = "mlstm"
    main_input_name = "input_ids"

    def __init__(self, config: MLSTMConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.mlstm = MultiplicativeLSTM.from_config(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The layer on top is the one that no checkpoint of a language model holds."""
        if module is self.score:
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """`attention_mask` (B, T) is 0 for padding, on either side; it has no influence."""
        resets = None
        if attention_mask is not None:
            input_ids, resets = _padded_on_the_left(input_ids, attention_mask)
        x = self.embedding(input_ids)
        # The layers themselves: the model detaches the state that it gives back.
        for layer in self.mlstm.layers:
            x, state = layer(x, x.new_zeros(x.shape[0], 2, layer.hidden), resets)
        logits = self.score(state[:, 0])
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _padded_on_the_left(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (B, T) whose texts all end at the end, and True where each of them begins."""
    places = torch.arange(ids.shape[1], device=ids.device)
    last = (mask * (places + 1)).amax(dim=1, keepdim=True)  # one more than the last token's place
    rolled = (places + last) % ids.shape[1]
    start = (mask.gather(1, rolled) == 0).sum(dim=1, keepdim=True)
    return ids.gather(1, rolled), places == start
