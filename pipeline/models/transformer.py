"""Any causal Transformer of `transformers` as a backbone.

The output matrix belongs to the head, so the model is run up to its last hidden state. Some
architectures change the logits after the output matrix; the two known ways (a factor, soft-capping)
are handed to the head, and a check on real numbers (`pipeline.heads.build`) refuses every other.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from data_prep.errors import RecipeError
from data_prep.recipe.explain import nearest
from pipeline.flops import Flops
from pipeline.models.linear import use_fast_products
from pipeline.protocols import Backbone
from pipeline.recipe.model import TransformerConfig

# Names under which architectures state how many positions they can see.
_POSITION_KEYS = ("n_positions", "max_position_embeddings", "max_seq_len", "n_ctx")


_MOST_LAYERS = 10_000  # a slip of a digit would build for hours


# The same function of its input. GPT-2's own is written as eight operations, each of which goes
# through memory: on a processor three times as slow, on a GPU a third of a step.
_SAME_IN_ONE_KERNEL = {"gelu_new": "gelu_pytorch_tanh"}


def transformer_config(
    section: TransformerConfig, vocab_size: int, window: int, special_ids: dict[str, int]
) -> Any:
    """The architecture's configuration with our sizes. RecipeError names the nearest valid key."""
    if section.architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        hint = nearest(section.architecture, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise RecipeError(
            f"model.architecture={section.architecture!r} is not a causal language model of "
            f"transformers; {hint or 'see the list of model types there'}"
        )
    config_class = CONFIG_MAPPING[section.architecture]
    default = config_class()
    known = {*default.to_dict(), *config_class.attribute_map}
    for key in section.config:
        if key not in known:
            hint = nearest(key, known) or f"keys of {config_class.__name__} are {sorted(known)}"
            raise RecipeError(f"model.config.{key}: unknown for {section.architecture}; {hint}")
    for key in ("vocab_size", *special_ids):
        if key in section.config:
            raise RecipeError(f"model.config.{key}: comes from the tokenizer; remove it")
    # Nothing is ever padded, and an architecture's own padding id would keep a token untrained.
    ours = {"pad_token_id": None, **special_ids, **section.config, "vocab_size": vocab_size}
    config = AutoConfig.for_model(section.architecture, **ours)
    _check_positions(section, config, window)
    layers = getattr(config, "num_hidden_layers", 1)
    if not 1 <= layers <= _MOST_LAYERS:
        raise RecipeError(f"model.config: {layers} layers, expected 1 to {_MOST_LAYERS:,}")
    for key in ("activation_function", "hidden_act"):
        if key not in section.config and getattr(config, key, None) in _SAME_IN_ONE_KERNEL:
            setattr(config, key, _SAME_IN_ONE_KERNEL[getattr(config, key)])
    config.use_cache = False
    return config


def _check_positions(section: TransformerConfig, config: Any, window: int) -> None:
    for key in _POSITION_KEYS:
        positions = getattr(config, key, None)
        if isinstance(positions, int) and positions < window:
            raise RecipeError(
                f"batch.window_tokens={window} exceeds the {positions} positions of "
                f"model.config.{key}: set model.config.{key}={window}"
            )


# Names of the matrices whose output is added to the residual stream, in any architecture.
_RESIDUAL = (
    "c_proj", "o_proj", "out_proj", "down_proj", "dense_4h_to_h", "attention.dense",
    "self_attn.dense", "self_attention.dense", "fc2", "fc_out", "wo",
)  # fmt: skip


_LAST_OF_EXPERTS = ".experts.down_proj"  # of all experts in one, with its bias


@torch.no_grad()
def zero_residual_projections(model: nn.Module) -> None:
    """Let every layer begin as the identity. RecipeError where no name is known."""
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    found = [module for name, module in linear.items() if name.endswith(_RESIDUAL)]
    if not found:
        names = sorted({name.rpartition(".")[2] for name in linear})
        raise RecipeError(
            "model.zero_init_residual: this architecture has none of the known output matrices of "
            f"layers, found {names}: set it to false"
        )
    for module in found:
        for parameter in module.parameters():
            parameter.zero_()
    experts = {n: p for n, p in model.named_parameters() if ".experts." in n and p.dim() > 1}
    last = [p for n, p in model.named_parameters() if _LAST_OF_EXPERTS in n]
    if experts and not last and not any(n.endswith(_RESIDUAL) for n in experts):
        raise RecipeError(
            "model.zero_init_residual: the last matrices of this architecture's experts are not "
            f"known, found {', '.join(sorted({n.rpartition('.')[2] for n in experts}))}: set it to "
            "false"
        )
    for parameter in last:
        parameter.zero_()


class TransformerBackbone(Backbone):
    """Hidden states of a `transformers` causal LM; no state is carried between windows."""

    recurrent = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.causal_lm = AutoModelForCausalLM.from_config(config)
        use_fast_products(self.causal_lm)
        if self.causal_lm.get_output_embeddings() is None:
            raise RecipeError(f"{type(self.causal_lm).__name__} has no output matrix to train")

    def forward(
        self, inputs: Tensor, state: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        out = self.causal_lm.base_model(input_ids=inputs, use_cache=False)
        return out.last_hidden_state, None

    def initial_state(self, rows: int, device: torch.device) -> Tensor | None:
        return None

    def output_weight(self) -> Tensor:
        return self.causal_lm.get_output_embeddings().weight

    def output_bias(self) -> Tensor | None:
        return getattr(self.causal_lm.get_output_embeddings(), "bias", None)

    def logit_scale(self) -> float:
        """Factor that the architecture puts on its logits (Cohere multiplies, Granite divides)."""
        config = self.causal_lm.config
        if getattr(config, "logits_scaling", None):
            return 1.0 / float(config.logits_scaling)
        return float(getattr(config, "logit_scale", None) or 1.0)

    def logit_softcap(self) -> float | None:
        """Soft-capping of the logits, as in Gemma 2: cap * tanh(logits / cap)."""
        cap = getattr(self.causal_lm.config, "final_logit_softcapping", None)
        return None if cap is None else float(cap)

    def recompute_activations(self) -> None:
        """RecipeError where the architecture of `transformers` cannot."""
        if not self.causal_lm.supports_gradient_checkpointing:
            raise RecipeError(
                f"engine.activation_checkpointing: {type(self.causal_lm).__name__} does not "
                "support it: set it to false"
            )
        self.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})

    def flops(self, window: int) -> Flops:
        """Two FLOPs per weight of every matrix but the embeddings, plus causal attention products.

        Attention: scores and values cost 2 * 2 * d per visible token, half the window on average.
        """
        config = self.causal_lm.config
        embeddings = {id(self.output_weight()), id(self.causal_lm.get_input_embeddings().weight)}
        weights = [
            2 * math.prod(_shape(p)) * _share_used(name, p, config)
            for name, p in self.causal_lm.named_parameters()
            if len(_shape(p)) > 1 and id(p) not in embeddings and not _is_position(name)
        ]
        # Of heads that together may be wider than the model, as in Qwen3.
        heads = getattr(config, "num_attention_heads", 0)
        width = (getattr(config, "head_dim", None) or 0) * heads or config.hidden_size
        attention = config.num_hidden_layers * 2 * window * width if heads else 0
        return Flops(float(sum(weights)), float(attention), 0.0)


def _share_used(name: str, parameter: nn.Parameter, config: Any) -> float:
    """Of a matrix the share that a token meets: of the experts of a mixture some."""
    chosen: int = getattr(config, "num_experts_per_tok", None) or 0
    together = ".experts." in name and len(_shape(parameter)) > 2
    return chosen / _shape(parameter)[0] if together and chosen else 1.0


def _is_position(name: str) -> bool:
    return any(part in name for part in ("wpe", "embed_positions", "position_embeddings"))


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)
