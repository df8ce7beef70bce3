"""The matrices of a model that masks act on: found by name, masked in value and gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from data_prep.errors import RecipeError
from pipeline.protocols import Backbone
from pipeline.sparsity.topology import spread

_PARAMETERS = ("weight", "v")  # of linear layers; of a matrix under weight norm


class Matrix:
    """A 2-D parameter and its mask, which lives on the processor as units (rows, columns)."""

    def __init__(
        self, name: str, module: nn.Module, parameter: nn.Parameter, block: int,
        is_head: bool = False,
    ) -> None:  # fmt: skip
        rows, columns = parameter.shape
        if rows % block or columns % block:
            raise RecipeError(
                f"sparsity.block={block} does not divide the {rows} x {columns} matrix of {name}: "
                "choose a divisor of both, or leave the module out of sparsity.modules"
            )
        self.name, self.module, self.parameter, self.block = name, module, parameter, block
        self.is_head = is_head
        self.shape = (rows // block, columns // block)
        self.size = rows * columns
        self.mask = torch.ones(self.shape, dtype=torch.bool)
        self.active = self.size  # weights
        # Let the gradient through as it is: to score all of it, or because the layer masks it.
        self.passes = False
        self._full: Tensor | None = None  # of single weights, where the gradient lies

    def full_mask(self, device: torch.device) -> Tensor:
        """Of single weights, (rows, columns) bool."""
        if self._full is None or self._full.device != device:
            self._full = spread(self.mask, self.block).to(device)
        return self._full

    def set_mask(self, mask: Tensor) -> None:
        """Take a mask of units."""
        self.mask, self._full = mask, None
        self.active = int(mask.sum()) * self.block**2

    def watch(self) -> None:
        """Mask the gradient from now on, before it is accumulated or reduced."""
        self.parameter.register_hook(self._mask_gradient)

    def _mask_gradient(self, gradient: Tensor) -> Tensor | None:
        if self.passes or self.active == self.size:
            return None
        return gradient * self.full_mask(gradient.device)


def find(backbone: Backbone, patterns: Sequence[str], head: bool, block: int) -> list[Matrix]:
    """The matrices of the modules that `patterns` name, in the model's order.

    RecipeError when a pattern matches nothing (the names that exist are listed) or a block does not
    divide a matrix.
    """
    output = backbone.output_weight()
    known = {
        name: (module, parameter)
        for name, module in backbone.causal_lm.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
        if key in _PARAMETERS and parameter.dim() == 2
        and not isinstance(module, nn.Embedding) and parameter is not output
    }  # fmt: skip
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {name for name, (module, _) in known.items() if _matches(pattern, name, module)}
        if not matched:
            raise RecipeError(
                f"sparsity.modules: {pattern!r} matches nothing; modules with a matrix are "
                f"{_listed(known)}"
            )
        chosen |= matched
    found = [Matrix(name, *known[name], block) for name in known if name in chosen]
    if head:
        if output is None:
            raise RecipeError("sparsity.mask_head: this model has no output matrix of its own")
        assert isinstance(output, nn.Parameter)
        found.append(Matrix("head", backbone.causal_lm, output, block, is_head=True))
    return found


def _matches(pattern: str, name: str, module: nn.Module) -> bool:
    if pattern == "auto":
        return isinstance(module, nn.Linear | Conv1D)
    return fnmatchcase(name, pattern)


def _listed(names: Iterable[str]) -> str:
    """Names, with the numbers of layers as * so that forty layers make one line."""
    parts = (
        ".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names
    )
    return ", ".join(dict.fromkeys(parts))
