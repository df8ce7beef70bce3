"""From the `optim` section to a `torch.optim` object, which needs no compiled extension."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.recipe.optim import OptimConfig


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
