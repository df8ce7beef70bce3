"""Configuration of a causal language model with a trained head of another kind than softmax."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig


class ScoredConfig(PretrainedConfig):
    """`text_config` is the architecture's own; the rest says how its logits o become scores.

    With o = scale o + offset: taylor log(1 + o + o^2/2), spherical log(o^2 + epsilon), z and
    squared o itself, which ranks and has no probabilities; adaptive: a head of its own matrices.
    """

    model_type = "scored_lm"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: Any = None,
        loss: str = "taylor",
        epsilon: float = 1e-2,
        scale: float = 1.0,
        offset: float = 0.0,
        cutoffs: list[int] | None = None,
        div_value: float = 4.0,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.loss = loss
        self.epsilon = epsilon
        self.scale = scale
        self.offset = offset
        self.cutoffs = cutoffs
        self.div_value = div_value
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    @property
    def has_probabilities(self) -> bool:
        return self.loss in ("taylor", "spherical", "adaptive")
