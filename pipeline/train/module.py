"""What the engine trains: a backbone and a head, met in one forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_prep.shards import Prepared
from pipeline.heads.build import build_head, check_head
from pipeline.models.build import build_backbone
from pipeline.models.compile import compile_layers
from pipeline.protocols import Backbone, Head
from pipeline.recipe import Recipe


class TrainModule(nn.Module):
    """forward(inputs, targets, weights, state, resets) -> (loss sum, token count, next state)."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        weights: Tensor,
        state: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        hidden, state = self.backbone(inputs, state, resets)
        loss_sum, count = self.head(hidden, targets, weights)
        return loss_sum, count, state


def build_module(recipe: Recipe, prepared: Prepared) -> TrainModule:
    """Seeded backbone and head of a recipe, for the tokenizer of its shards."""
    end = prepared.tokenizer().end_id
    special = {} if end is None else {"bos_token_id": end, "eos_token_id": end}
    torch.manual_seed(recipe.run.seed)
    backbone = build_backbone(
        recipe.model, prepared.vocab_size, recipe.batch.window_tokens, special
    )
    head = build_head(recipe, backbone)
    check_head(head, backbone)
    if recipe.engine.activation_checkpointing:
        backbone.recompute_activations()
    if recipe.engine.compile:
        compile_layers(backbone.causal_lm)
    return TrainModule(backbone, head)
