"""Cross-entropy and its gradient from a chunk of logits on a GPU, one program a row.

The logits are read twice and the gradient takes their place: written in PyTorch's operations, the
same goes through memory a dozen times in fp32, which takes longer than the products around it.
"""

from __future__ import annotations

import triton
from torch import Tensor, empty, float32
from triton import language as tl

_BLOCK = 4096  # logits of a row at once


def row_losses(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    scale: float,
    softcap: float | None,
    train: bool,
) -> Tensor:
    """Weighted cross-entropies (N,) fp32 of logits (N, V) in any dtype, as the output matrix gave
    them; with `train`, the logits are replaced by the gradient of the sum with respect to them."""
    rows, vocabulary = logits.shape
    losses = empty(rows, dtype=float32, device=logits.device)
    if rows:
        _row_losses[(rows,)](
            logits, logits.stride(0), targets, weights, losses, vocabulary, scale,
            1.0 if softcap is None else softcap, CAPPED=softcap is not None, TRAIN=train,
            BLOCK=min(_BLOCK, triton.next_power_of_2(vocabulary)), num_warps=8,
        )  # fmt: skip
    return losses


@triton.jit
def _shaped(x, scale, cap, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]
    x = x.to(tl.float32) * scale
    if CAPPED:
        x = cap * (2 * tl.sigmoid(2 * x / cap) - 1)  # tanh
    return x


@triton.jit
def _row_losses(  # type: ignore[no-untyped-def]
    logits, stride, targets, weights, losses, vocabulary, scale, cap,
    CAPPED: tl.constexpr, TRAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target, weight = tl.load(targets + row), tl.load(weights + row).to(tl.float32)
    # Read before the reductions below, whose barriers keep it before the gradient in its place.
    picked = _shaped(tl.load(logits + target), scale, cap, CAPPED)
    columns = tl.arange(0, BLOCK)
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for first in range(0, vocabulary, BLOCK):
        inside = first + columns < vocabulary
        x = _shaped(tl.load(logits + first + columns, inside, 0.0), scale, cap, CAPPED)
        x = tl.where(inside, x, float("-inf"))
        higher = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), 0)
        top = higher
    log_z = top + tl.log(total)
    tl.store(losses + row, (log_z - picked) * weight)
    if TRAIN:
        for first in range(0, vocabulary, BLOCK):
            inside = first + columns < vocabulary
            x = _shaped(tl.load(logits + first + columns, inside, 0.0), scale, cap, CAPPED)
            slope = (tl.exp(x - log_z) - (first + columns == target).to(tl.float32)) * weight
            if CAPPED:
                slope *= 1 - (x / cap) * (x / cap)
            slope *= scale
            tl.store(logits + first + columns, slope.to(logits.dtype.element_ty), inside)
