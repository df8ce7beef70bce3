"""torch.compile for the layers of a Transformer: fewer passes through memory in each of them."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from data_prep.errors import RecipeError


def compile_layers(model: nn.Module) -> None:
    """Compile every layer at its first use; parameters keep their names.

    Layer by layer, because they are alike and share one compiled code, and because `transformers`
    leaves the causal mask out, which halves attention, only where it is not traced. RecipeError for
    an architecture whose layers cannot be told.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise RecipeError(
            f"engine.compile: the layers of {type(model).__name__} are not known: set it to false"
        )
    for layer in layers:
        for module in layer.modules():
            # A forward of one's own in each module would be compiled anew for each.
            vars(module).pop("forward", None)
        layer.compile(dynamic=False)
