"""From the `model` section to a backbone: the one place that knows every kind of model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from data_prep.errors import RecipeError
from pipeline.flops import Flops
from pipeline.models.mlstm.cell import MultiplicativeLSTMLayer
from pipeline.models.mlstm.configuration_mlstm import MLSTMConfig as HFMLSTMConfig
from pipeline.models.mlstm.modeling_mlstm import MLSTMForCausalLM
from pipeline.models.transformer import (
    TransformerBackbone,
    transformer_config,
    zero_residual_projections,
)
from pipeline.protocols import Backbone
from pipeline.recipe.model import MLSTMConfig, TransformerConfig


class MLSTMBackbone(Backbone):
    """The multiplicative LSTM behind the `Backbone` protocol."""

    recurrent = True

    def __init__(self, causal_lm: MLSTMForCausalLM) -> None:
        super().__init__()
        self.causal_lm = causal_lm

    def forward(
        self, inputs: Tensor, state: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.causal_lm.hidden(inputs, state, resets)

    def initial_state(self, rows: int, device: torch.device) -> Tensor:
        config = self.causal_lm.config
        dtype = next(self.parameters()).dtype
        return torch.zeros(
            rows, config.num_hidden_layers, 2, config.hidden_size, device=device, dtype=dtype
        )

    def output_weight(self) -> Tensor:
        return self.causal_lm.lm_head.weight

    def output_bias(self) -> Tensor:
        return self.causal_lm.lm_head.bias

    def recompute_activations(self) -> None:
        for layer in self.causal_lm.mlstm.modules():
            if isinstance(layer, MultiplicativeLSTMLayer):
                layer.recomputes = True

    def flops(self, window: int) -> Flops:
        """Two FLOPs per weight of the recurrent and input matrices."""
        matrices = [p for name, p in self.causal_lm.mlstm.named_parameters() if name.endswith(".v")]
        blocks = sum(2 * math.prod(getattr(p, "ds_shape", p.shape)) for p in matrices)
        return Flops(float(blocks), 0.0, 0.0)


def build_backbone(
    section: MLSTMConfig | TransformerConfig,
    vocab_size: int,
    window: int,
    special_ids: dict[str, int],
) -> Backbone:
    """A freshly initialised backbone; the caller seeds torch and chooses the device context.

    `special_ids` holds the tokenizer's ids such as `eos_token_id`. RecipeError for
    an unknown architecture or configuration key, and for values that no model can be made of.
    """
    try:
        return _backbone(section, vocab_size, window, special_ids)
    except RecipeError:
        raise
    # What an architecture raises at a value it cannot use is not specified.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        what = "mlstm" if isinstance(section, MLSTMConfig) else section.architecture
        raise RecipeError(
            f"model: {what} cannot be built of these values ({reason:.300}): correct model.*"
        ) from error


def _backbone(
    section: MLSTMConfig | TransformerConfig,
    vocab_size: int,
    window: int,
    special_ids: dict[str, int],
) -> Backbone:
    if isinstance(section, MLSTMConfig):
        config = HFMLSTMConfig(
            vocab_size=vocab_size,
            embedding_size=section.embedding,
            hidden_size=section.hidden,
            num_hidden_layers=section.layers,
            weight_norm=section.weight_norm,
            forget_bias=section.forget_bias,
        )
        return MLSTMBackbone(MLSTMForCausalLM(config))
    backbone = TransformerBackbone(transformer_config(section, vocab_size, window, special_ids))
    if section.zero_init_residual:
        zero_residual_projections(backbone.causal_lm)
    return backbone


def parameter_count(module: nn.Module) -> int:
    """Trainable parameters, tied ones once, also when ZeRO-3 has partitioned them."""
    return sum(math.prod(getattr(p, "ds_shape", p.shape)) for p in module.parameters())
