"""Linear layers of a Transformer by the faster library, on processors.

Modules and parameters stay as `transformers` made them; only how their product and its gradients
are computed changes, in fp32 on a processor.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pipeline.products import has_fast_product, linear


def use_fast_products(model: nn.Module) -> None:
    """Let every plain linear layer inside `model` multiply by `pipeline.products`."""
    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D):
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _forward(module: Any, x: Tensor) -> Tensor:
    if not has_fast_product(x, module.weight):
        return type(module).forward(module, x)
    return linear(x, module.weight, module.bias, transposed=isinstance(module, Conv1D))
