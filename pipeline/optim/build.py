"""From the `optim` section to a `torch.optim` object, which needs no compiled extension, and what
looks over its shoulder."""

from __future__ import annotations

import torch
from torch import nn

from data_prep.errors import RecipeError
from pipeline.optim.noise_scale import NoiseScale
from pipeline.protocols import StepPlugin
from pipeline.recipe import Recipe
from pipeline.recipe.optim import OptimConfig


def noise_plugins(recipe: Recipe) -> list[StepPlugin]:
    """The measure of the gradient's noise, where the recipe asks for it."""
    every = recipe.optim.noise_every_steps
    if not every:
        return []
    if recipe.head.kind in ("gram", "factored", "phased"):
        raise RecipeError(
            f"optim.noise_every_steps with head.kind={recipe.head.kind}: that head has no gradient "
            "of single micro-batches to look at; set optim.noise_every_steps=0"
        )
    return [NoiseScale(recipe.batch, every)]


def build_optimizer(section: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """AdamW over two groups: matrices are decayed, biases, gains and norms are not."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in module.parameters():
        if not parameter.requires_grad:  # trained by a head
            continue
        (matrices if parameter.dim() >= 2 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": section.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=section.lr,
        betas=section.betas,
        eps=section.eps,
        fused=True,
    )
