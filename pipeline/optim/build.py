"""From the `optim` section to a `torch.optim` object, which needs no compiled extension, and what
looks over its shoulder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from data_prep.errors import RecipeError
from pipeline.optim.noise_scale import NoiseScale
from pipeline.optim.registry import optimizer_class, settings_of
from pipeline.protocols import StepPlugin
from pipeline.recipe import Recipe
from pipeline.recipe.optim import OptimConfig

_FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad)


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
    """Over two groups: matrices are decayed, biases, gains and norms are not. RecipeError for an
    option that the optimizer does not know."""
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
    made = optimizer_class(section.name)
    given: dict[str, Any] = {"betas": section.betas, "eps": section.eps}
    if made in _FUSED:
        given["fused"] = True
    settings = settings_of(made, given, section.options)
    return made([group for group in groups if group["params"]], lr=section.lr, **settings)
