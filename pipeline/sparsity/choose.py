"""Which executor is fastest for a layer, by trying."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pipeline.sparsity.linear import EXECUTORS, SparseLinear, missing
from pipeline.sparsity.topology import spread

_REPEATS = 3


def choose(
    layer: SparseLinear, mask: Tensor | None, block: int, tokens: int
) -> tuple[str, dict[str, float]]:
    """The fastest executor for `mask`, and the seconds of every possible one, forward and backward
    over `tokens` tokens. `dense` is measured beside them and never chosen: its gradient would not
    be masked.

    Works on a twin with random weights, so that the layer, its gradients and the random state of
    the run stay as they are, and weights that ZeRO-3 has scattered are not asked for.
    """
    if mask is None:
        return "dense", {}
    random = torch.Generator(layer.weight.device).manual_seed(0)
    twin = _twin(layer, spread(mask, block), random)

    def activations(features: int) -> Tensor:
        return torch.empty(
            tokens, features, device=twin.weight.device, dtype=twin.weight.dtype
        ).normal_(generator=random)

    x, d_y = activations(layer.in_features).requires_grad_(), activations(layer.out_features)
    seconds = {}
    for executor in ("dense", *EXECUTORS):
        if executor == "dense" or missing(executor, block, twin.weight) is None:
            twin.set_mask(mask, block, executor)
            seconds[executor] = min(_seconds(twin, x, d_y) for _ in range(1 + _REPEATS))
    return min(seconds.keys() - {"dense"}, key=seconds.__getitem__), seconds


def _twin(layer: SparseLinear, active: Tensor, random: torch.Generator) -> SparseLinear:
    """A layer of the same kind and size, with weights of its own where `active` (out, in)."""
    with torch.device("meta"):
        empty: nn.Module = (
            Conv1D(layer.out_features, layer.in_features)
            if layer.transposed
            else nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        )
    twin = SparseLinear(empty).to(layer.weight.dtype).to_empty(device=layer.weight.device)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_(std=layer.in_features**-0.5, generator=random)
        twin.weight.mul_(active.t() if layer.transposed else active)
    return twin


def _seconds(layer: SparseLinear, x: Tensor, d_y: Tensor) -> float:
    """Of one forward and backward."""
    _wait(x.device)
    began = time.perf_counter()
    layer(x).backward(d_y)
    _wait(x.device)
    seconds = time.perf_counter() - began
    for tensor in (x, *layer.parameters()):
        tensor.grad = None
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
