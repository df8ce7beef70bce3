"""Memory of one device: what is certain from sizes, and activations as a small copy shows them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from data_prep.tokenizers import vocabulary_limit
from pipeline.heads.build import build_head
from pipeline.models.build import build_backbone, parameter_count
from pipeline.models.mlstm.cell import RECOMPUTED_STEPS
from pipeline.models.transformer import transformer_config
from pipeline.recipe import Recipe
from pipeline.recipe.deepspeed import offloaded
from pipeline.recipe.head import SampledHeadConfig, SoftmaxHeadConfig
from pipeline.recipe.model import MLSTMConfig, TransformerConfig
from pipeline.train.module import TrainModule

_LOOK_TOKENS = 256
GIB = 2**30


def meta_module(recipe: Recipe) -> TrainModule:
    """Backbone and head without memory; the vocabulary is the tokenizer section's."""
    vocab_size = vocabulary_limit(recipe.tokenizer)
    with torch.device("meta"):
        backbone = build_backbone(recipe.model, vocab_size, recipe.batch.window_tokens, {})
        return TrainModule(backbone, build_head(recipe, backbone))


class Memory(NamedTuple):
    """Bytes of one device by what they are for, and its share of what the template offloads."""

    device: dict[str, float]
    host: dict[str, float]
    disk: dict[str, float]

    def lines(self) -> list[str]:
        """For a person."""
        device = self.device | {"together": sum(self.device.values())}
        places = {"": device, ", on the host": self.host, ", on its disk": self.disk}
        return [
            f"{name:<12} {size / GIB:8.3f} GiB per device{place}"
            for place, rows in places.items()
            for name, size in rows.items()
        ]


def memory_of(recipe: Recipe, module: TrainModule, devices: int, dtype: str) -> Memory:
    """The estimate for one of so many devices; `module` may be without memory.

    The optimizer's part holds fp32 masters beside both moments, except at fp32 and stage 0. Where
    it is offloaded, ZeRO 2 and 3 keep its gradients beside it, in fp32.
    """
    parameters, stage = parameter_count(module), recipe.engine.zero_stage
    width = 4 if dtype == "fp32" else 2
    masters = 0 if dtype == "fp32" and stage == 0 else 4
    rows = {
        "weights": parameters * width / (devices if stage >= 3 else 1),
        "gradients": parameters * width / (devices if stage >= 2 else 1),
        "optimizer": parameters * (8 + masters) / (devices if stage >= 1 else 1),
        "activations": activations_of(recipe, width),
    }
    if logits := _logits(recipe, module):
        rows["logits"] = logits
    if recipe.engine.kind == "ddp":
        # Gradients once more in the buckets that travel, and in fp32 for a step on fp32 masters.
        rows["buckets"] = parameters * (width + masters)
    if recipe.optim.sam_rho:
        rows["climb"] = parameters * 8  # its direction, and the weights that it comes back to
    found = Memory(rows, {}, {})
    where = {"cpu": found.host, "nvme": found.disk}
    places = offloaded(recipe)
    if place := places.get("optimizer"):
        where[place]["optimizer"] = rows.pop("optimizer")
        if stage >= 2:
            where[place]["gradients"] = rows.pop("gradients") * 4 / width
    if place := places.get("param"):
        where[place]["weights"] = rows.pop("weights")
    return found


def _logits(recipe: Recipe, module: TrainModule) -> float:
    """Of a softmax in fp32: they, their exponentials and their gradient; 0 where none are made."""
    outputs = module.backbone.output_weight()
    assert outputs is not None
    tokens = recipe.batch.micro_batch * recipe.batch.window_tokens
    if isinstance(recipe.head, SoftmaxHeadConfig):
        return 3 * 4.0 * min(recipe.head.chunk_tokens, tokens) * outputs.shape[0]
    if isinstance(recipe.head, SampledHeadConfig):
        return 3 * 4.0 * tokens * recipe.head.samples
    return 0.0


def activations_of(recipe: Recipe, width: int) -> float:
    """Bytes that one micro-batch keeps from its forward for its backward, `width` bytes a value."""
    tokens = recipe.batch.micro_batch * recipe.batch.window_tokens
    if isinstance(recipe.model, MLSTMConfig):
        # Four gates, two projections, hidden state twice, two gradients; the cell state in fp32.
        values = tokens * recipe.model.layers * recipe.model.hidden
        if not recipe.engine.activation_checkpointing:
            return float(values * (10 * width + 4))
        share = min(1.0, RECOMPUTED_STEPS / recipe.batch.window_tokens)
        return values * ((10 * width + 4) * share + width)
    layers, key = _layers(recipe.model)
    one, two = (_kept_values(recipe, recipe.model, {key: count}) for count in (1, 2))
    a_layer, rest = two - one, 2 * one - two
    if recipe.engine.activation_checkpointing:  # each layer's input, and one layer at a time
        vocabulary = vocabulary_limit(recipe.tokenizer)
        config = transformer_config(recipe.model, vocabulary, recipe.batch.window_tokens, {})
        return tokens * width * (rest + layers * config.hidden_size + a_layer)
    return tokens * width * (rest + layers * a_layer)


def _layers(section: TransformerConfig) -> tuple[int, str]:
    """How many, and the key of the configuration that says so."""
    config_class = CONFIG_MAPPING[section.architecture]
    key = config_class.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    given = section.config.get(key, section.config.get("num_hidden_layers"))
    return int(given or config_class().num_hidden_layers), key


def _kept_values(recipe: Recipe, section: TransformerConfig, changes: dict[str, Any]) -> float:
    """Values per token that autograd keeps of a real forward through few layers."""
    tokens = min(_LOOK_TOKENS, recipe.batch.window_tokens)
    shallow = section.model_copy(update={"config": section.config | changes})
    window = recipe.batch.window_tokens
    backbone = build_backbone(shallow, vocabulary_limit(recipe.tokenizer), window, {})
    weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # Held until all are counted: memory that is free is given out again.
        hidden = backbone(torch.zeros(1, tokens, dtype=torch.int64), None, None)
    sizes = [t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights]
    del hidden
    return sum(sizes) / 4 / tokens
