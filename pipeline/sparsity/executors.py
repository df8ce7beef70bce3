"""Which computation every masked layer of a model uses, phase by phase."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from data_prep.errors import RecipeError
from pipeline.ranks import from_rank0, gather_objects
from pipeline.seeds import generator_for
from pipeline.sparsity.choose import choose
from pipeline.sparsity.design import Design
from pipeline.sparsity.linear import EXECUTORS, SparseLinear, missing
from pipeline.sparsity.matrices import Matrix
from pipeline.sparsity.topology import random_mask

_NAMES = tuple(EXECUTORS)


class Executors:
    """Puts a `SparseLinear` in the place of every masked linear layer and tells it how to compute.

    Matrices that are no linear layer compute as ever, their gradient masked afterwards. `tokens`
    is what a device computes at once. RecipeError when nothing can be executed as wanted.
    """

    def __init__(self, design: Design, causal_lm: nn.Module, tokens: int) -> None:
        self._design, self._matrices, self._tokens = design, design.matrices, tokens
        self._layers = [_swapped(matrix, causal_lm) for matrix in design.matrices]
        wanted = design.section.executor
        if wanted not in ("auto", "masked") and not any(self._layers):
            raise RecipeError(
                f"sparsity.executor={wanted} computes linear layers, and none of the masked "
                "modules is one: use masked"
            )
        self._choices: Tensor | None = None  # (phases, matrices), numbers of _NAMES
        self._stale, self._fit = True, True

    def arrange(self, phase: int, scoring: bool) -> None:
        """Before an iteration: every layer knows its mask and how to compute. Collective."""
        if self._choices is None or not self._fit:
            self._choices, self._fit = from_rank0(self._choose), True
        rows = zip(self._matrices, self._layers, self._choices[phase].tolist(), strict=True)
        for matrix, layer, choice in rows:
            matrix.passes = scoring or layer is not None
            if layer is None:
                continue
            layer.dense_gradient = scoring
            if self._stale:
                whole = matrix.active == matrix.size
                mask = matrix.mask.t() if layer.transposed else matrix.mask
                layer.set_mask(None if whole else mask, matrix.block, _NAMES[choice])
        self._stale = False

    def masks_changed(self) -> None:
        """The layers' masks are out of date."""
        self._stale = True

    def state(self) -> dict[str, Tensor]:
        """The choices belong to the run: another way to compute rounds otherwise."""
        return {} if self._choices is None else {"executors": self._choices}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what `state` gave, to be chosen anew where a rank cannot follow it. Collective."""
        self._choices, self._stale = tensors.get("executors"), True
        wanted = self._design.section.executor
        fit = self._choices is None or wanted != "auto" or self._can_execute(self._choices)
        self._fit = all(gather_objects(fit))

    def _can_execute(self, choices: Tensor) -> bool:
        """Whether choices, made perhaps on another device or in another precision, can be followed
        here."""
        columns = zip(self._matrices, self._layers, choices.t().tolist(), strict=True)
        return not any(
            layer is not None and missing(_NAMES[choice], matrix.block, layer.weight)
            for matrix, layer, column in columns
            for choice in set(column)
        )

    def _choose(self) -> Tensor:
        """For every phase and matrix; what is equal in shape and density is measured once."""
        phases = self._design.plan.phases
        choices = torch.zeros(len(phases), len(self._matrices), dtype=torch.int8)
        measured: dict[tuple[int, int, bool, int], str] = {}
        for number, phase in enumerate(phases):
            units = self._design.active_units(phase.density)
            rows = zip(self._matrices, self._layers, units, strict=True)
            for place, (matrix, layer, active) in enumerate(rows):
                if layer is None or active == matrix.mask.numel():
                    continue
                key = (*matrix.shape, layer.transposed, active)
                if key not in measured:
                    measured[key] = self._best(matrix, layer, active)
                choices[number, place] = _NAMES.index(measured[key])
        return choices

    def _best(self, matrix: Matrix, layer: SparseLinear, active: int) -> str:
        """What the recipe names, or for auto the fastest."""
        wanted = self._design.section.executor
        if wanted != "auto":
            return wanted
        mask = random_mask(matrix.shape, active, generator_for(0, 0, "choose"))
        mask = mask.t() if layer.transposed else mask
        return choose(layer, mask, matrix.block, self._tokens)[0]


def _swapped(matrix: Matrix, causal_lm: nn.Module) -> SparseLinear | None:
    """The layer that now stands where the matrix's stood, or None for what is no linear layer."""
    if matrix.is_head or not isinstance(matrix.module, nn.Linear | Conv1D):
        return None
    layer = SparseLinear(matrix.module)
    parent, _, name = matrix.name.rpartition(".")
    setattr(causal_lm.get_submodule(parent), name, layer)
    matrix.module = layer
    return layer
