"""Muon for the matrices inside a model, AdamW for everything else, as one optimizer.

Jordan et al. 2024 (Muon) orthogonalise the update of a hidden matrix; embeddings, output layers and
vectors are left to Adam. Updates are scaled to AdamW's size (Liu et al. 2025, arXiv 2502.16982,
section 2.2), so one rate fits both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.optim.registry import settings_of
from pipeline.protocols import Head
from pipeline.recipe.optim import OptimConfig


class MuonWithAdam(torch.optim.Optimizer):
    """Both work on this object's groups and state, so that whoever changes those changes theirs."""

    def __init__(self, muon: torch.optim.Muon, adam: torch.optim.AdamW) -> None:
        self._members = (muon, adam)
        self._counts = [len(member.param_groups) for member in self._members]
        super().__init__([*muon.param_groups, *adam.param_groups], {})
        self._share()

    def _share(self) -> None:
        begin = 0
        for member, count in zip(self._members, self._counts, strict=True):
            member.param_groups = self.param_groups[begin : begin + count]
            member.state = self.state
            begin += count

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for member in self._members:
            member.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


def build_muon(section: OptimConfig, module: nn.Module) -> MuonWithAdam:
    """`section.options` are Muon's, betas and eps AdamW's."""
    apart = {id(parameter) for parameter in _tables_of(module)}
    hidden: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            inside = parameter.dim() == 2 and id(parameter) not in apart
            (hidden if inside else tables if parameter.dim() >= 2 else vectors).append(parameter)
    decay = section.weight_decay
    settings = settings_of(torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"}, section.options)
    muon = torch.optim.Muon(hidden, lr=section.lr, weight_decay=decay, **settings)
    groups = [
        {"params": tables, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=section.lr, betas=section.betas,
        eps=section.eps, fused=True,
    )  # fmt: skip
    return MuonWithAdam(muon, adam)


def _tables_of(module: nn.Module) -> list[nn.Parameter]:
    """Rows that belong to tokens: embeddings, and output layers with what their heads add."""
    return [
        parameter
        for part in module.modules()
        if isinstance(part, nn.Embedding | Head)
        for parameter in part.parameters()
    ]
