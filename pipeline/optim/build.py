"""From the `optim` section to a `torch.optim` object, which needs no compiled extension, and what
looks over its shoulder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from data_prep.errors import RecipeError
from pipeline.optim.muon import build_muon
from pipeline.optim.noise_scale import NoiseScale
from pipeline.optim.registry import has_small_states, optimizer_class, settings_of
from pipeline.optim.sam import SharpnessAware
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


def sam_plugins(recipe: Recipe) -> list[StepPlugin]:
    """The second pass of a sharpness-aware step, where the recipe asks for it."""
    section = recipe.optim
    return [SharpnessAware(section.sam_rho, section.sam_adaptive)] if section.sam_rho else []


def check_small_states(recipe: Recipe) -> None:
    """RecipeError where states of few bits would have to be set weight by weight."""
    if has_small_states(recipe.optim.name) and recipe.sparsity.kind != "dense":
        raise RecipeError(
            f"optim.name={recipe.optim.name} with sparsity.kind={recipe.sparsity.kind}: moments of "
            "masked weights must be 0, and those are rounded in blocks; use optim.name=adamw"
        )


def build_optimizer(section: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Over two groups: matrices are decayed, biases, gains and norms are not. RecipeError for an
    option that the optimizer does not know."""
    made = optimizer_class(section.name)
    if made is torch.optim.Muon:
        return build_muon(section, module)
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
    given: dict[str, Any] = {"betas": section.betas, "eps": section.eps}
    if made in _FUSED:
        given["fused"] = True
    settings = settings_of(made, given, section.options)
    return made([group for group in groups if group["params"]], lr=section.lr, **settings)


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Of one group. torchao keeps rates in tensors, which its compiled steps hold on to."""
    if torch.is_tensor(group["lr"]):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
