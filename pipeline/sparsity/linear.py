"""A linear layer whose products leave out what its mask leaves out.

Weights stay ordinary dense parameters, exactly zero where the mask is off: ZeRO, optimizers,
checkpoints and exports need to know nothing. How the products are made is an executor's matter, and
all executors agree: the weight's gradient is dense in shape and zero where the mask is off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from data_prep.errors import RecipeError
from pipeline.products import has_fast_product, linear, product
from pipeline.sparsity import kernels
from pipeline.sparsity.blocks import Blocks
from pipeline.sparsity.csr import Csr
from pipeline.sparsity.gather import Gather
from pipeline.sparsity.topology import spread


class Executor(Protocol):
    """The products of one layer under one mask; x (N, in) and d_y (N, out) at any stride, weight
    (out, in) contiguous or the transpose of what is."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...
    def backward(self, x: Tensor, weight: Tensor, d_y: Tensor) -> tuple[Tensor, Tensor]: ...


class Masked:
    """Dense products, and a gradient that is masked afterwards: the reference, for any mask."""

    def __init__(self, mask: Tensor, block: int) -> None:
        self._mask = spread(mask, block)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (N, in), weight (out, in) and bias (out,) to y (N, out)."""
        return product(x, weight, bias)

    def backward(self, x: Tensor, weight: Tensor, d_y: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of x (N, in) and of weight (out, in), zero at inactive positions."""
        if weight.is_contiguous():
            d_weight = product(d_y.t(), x.t())
        else:
            d_weight = product(x.t(), d_y.t()).t()
        return product(d_y, weight.t()), d_weight.mul_(self._mask)


# Checkpoints hold their numbers: new ones go to the end.
EXECUTORS: dict[str, Callable[[Tensor, int], Executor]] = {
    "masked": Masked,
    "gather": Gather,
    "csr": Csr,
    "triton": kernels.Triton,
    "blocks": Blocks,
}


def missing(executor: str, block: int, weight: Tensor) -> str | None:
    """What an executor needs and does not find for blocks of this weight, or None."""
    dtype, device = str(weight.dtype).removeprefix("torch."), weight.device.type
    needs: dict[str, dict[str, bool]] = {
        "masked": {},
        "gather": {"sparsity.block above 1": block > 1},
        "csr": {
            "sparsity.block=1": block == 1,
            "a processor": device == "cpu",
            "fp32": dtype in ("float32", "float64"),
        },
        "triton": {
            "a GPU": device == "cuda",
            "triton (pip install triton)": kernels.triton is not None,
            "sparsity.block a multiple of 16": block % 16 == 0,
            "fp32, bf16 or fp16": dtype in ("float32", "bfloat16", "float16"),
        },
        "blocks": {
            "sparsity.block above 1": block > 1,
            "a processor": device == "cpu",
            "fp32": dtype in ("float32", "float64"),  # sums grow block by block
        },
    }
    unmet = [need for need, met in needs[executor].items() if not met]
    found = f"found block {block} of {dtype} on {device}"
    return f"needs {' and '.join(unmet)}, {found}" if unmet else None


class SparseLinear(nn.Module):
    """Takes the place of an `nn.Linear` or a GPT-2 `Conv1D`, whose parameters it holds under the
    same names. Without a mask it computes as they do.

    `dense_gradient` lets the whole gradient of the weight through, whatever the executor: new
    connections are scored by it.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if isinstance(layer, Conv1D):
            self.in_features, self.out_features = layer.nx, layer.nf
        elif isinstance(layer, nn.Linear):
            self.in_features, self.out_features = layer.in_features, layer.out_features
        else:
            raise RecipeError(
                f"found a {type(layer).__name__} among the layers to mask, expected nn.Linear or "
                "Conv1D; leave it out of sparsity.modules"
            )
        self.transposed = isinstance(layer, Conv1D)  # the weight is stored (in, out)
        self.weight, self.bias = layer.weight, layer.bias
        self.training = layer.training
        self.dense_gradient = False
        self._executor: Executor | None = None

    def set_mask(self, mask: Tensor | None, block: int, executor: str) -> None:
        """Compute with `mask` from now on, (out/block, in/block) bool, or dense without one.

        What depends on the mask is laid out on the device where the weight is now.
        """
        if executor != "dense" and executor not in EXECUTORS:
            raise RecipeError(
                f"sparsity.executor={executor!r}: choose one of dense, {', '.join(EXECUTORS)}"
            )
        if mask is None or executor == "dense":
            self._executor = None
            return
        self._check(mask, block)
        lack = missing(executor, block, self.weight)
        if lack is not None:
            raise RecipeError(f"sparsity.executor={executor} {lack}: choose 'masked' or 'auto'")
        self._executor = EXECUTORS[executor](mask.to(self.weight.device), block)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        if self._executor is None or self.dense_gradient:
            return self._dense(x)
        flat = x.reshape(-1, self.in_features)
        y = _Product.apply(flat, self.weight, self.bias, self._executor, self.transposed)
        return y.view(*x.shape[:-1], self.out_features)

    def _dense(self, x: Tensor) -> Tensor:
        if has_fast_product(x, self.weight):
            return linear(x, self.weight, self.bias, self.transposed)
        if not self.transposed:
            return nn.functional.linear(x, self.weight, self.bias)
        # Not through the transpose of the weight: a view that is kept for backward would keep what
        # ZeRO-3 has gathered.
        y = torch.addmm(self.bias, x.reshape(-1, self.in_features), self.weight)
        return y.view(*x.shape[:-1], self.out_features)

    def _check(self, mask: Tensor, block: int) -> None:
        out, inputs = self.out_features, self.in_features
        if out % block or inputs % block:
            raise RecipeError(
                f"sparsity.block={block} does not divide a layer of {out} x {inputs} weights: "
                "choose a divisor of both, or leave the layer out of sparsity.modules"
            )
        expected = (out // block, inputs // block)
        if mask.dtype != torch.bool or tuple(mask.shape) != expected:
            raise RecipeError(
                f"found a mask {tuple(mask.shape)} of {mask.dtype}, expected bool {expected} for "
                f"{out} x {inputs} weights in blocks of {block}: make it anew from this layer"
            )

    def extra_repr(self) -> str:
        """Shown when a model is printed."""
        how = "dense" if self._executor is None else type(self._executor).__name__.lower()
        return f"in_features={self.in_features}, out_features={self.out_features}, {how}"


class _Product(torch.autograd.Function):
    """What is kept for backward is the parameter itself: ZeRO-3 empties it after forward and fills
    it again before backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, executor: Executor,
        transposed: bool,
    ) -> Tensor:  # fmt: skip
        """x (N, in) to (N, out)."""
        ctx.save_for_backward(x, weight)
        ctx.executor, ctx.transposed = executor, transposed
        return executor.forward(x, weight.t() if transposed else weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Of x, the weight as it is stored, and the bias."""
        x, weight = ctx.saved_tensors
        stored = weight.t() if ctx.transposed else weight
        d_x, d_weight = ctx.executor.backward(x, stored, d_y)
        d_bias = d_y.sum(0) if ctx.needs_input_grad[2] else None
        return d_x, d_weight.t() if ctx.transposed else d_weight, d_bias, None, None
