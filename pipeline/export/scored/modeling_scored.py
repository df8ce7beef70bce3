"""A causal language model whose logits are the log-probabilities of its trained head.

model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
model(input_ids).logits           # log-probabilities, up to a constant of each position
model.generate(input_ids)         # samples the distribution that was trained
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from .configuration_scored import ScoredConfig


class ScoredForCausalLM(PreTrainedModel, GenerationMixin):
    """`model` is the architecture itself, with an output matrix that gives o, not scores."""

    config_class = ScoredConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True  # whether it does is the architecture's to say

    def __init__(self, config: ScoredConfig, model: Any = None) -> None:
        super().__init__(config)
        self.model = (
            AutoModelForCausalLM.from_config(config.text_config) if model is None else model
        )
        self.adaptive = None
        if config.cutoffs is not None:
            self.adaptive = nn.AdaptiveLogSoftmaxWithLoss(
                config.text_config.hidden_size, config.text_config.vocab_size, config.cutoffs,
                config.div_value,
            )  # fmt: skip
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from a checkpoint; nothing to do."""

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def scores(self, logits: Tensor) -> Tensor:
        """Log-probabilities up to a constant from the architecture's own logits o."""
        o = self.config.scale * logits.float() + self.config.offset
        if self.config.loss == "taylor":
            return torch.log1p(o + o * o / 2)
        if self.config.loss == "spherical":
            return torch.log(o * o + self.config.epsilon)
        return o

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        kwargs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.adaptive is None:
            out = self.model(**kwargs)
            out.logits = self.scores(out.logits)
        else:
            out = self.model(**kwargs | {"output_hidden_states": True})
            hidden = out.hidden_states[-1]
            flat = self.adaptive.log_prob(hidden.flatten(0, -2).float())
            out.logits = flat.view(*hidden.shape[:-1], -1)
        if labels is not None:
            out.loss = nn.functional.cross_entropy(
                out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
        return out

    # Generation is the architecture's own, with its cache or its state.

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        return self.model.prepare_inputs_for_generation(input_ids, **kwargs)

    def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.model._update_model_kwargs_for_generation(*args, **kwargs)
