"""Full softmax with cross-entropy: fp32 logits, never more than a chunk of them at a time.

The gradient is formed while the chunk's logits exist, so no logits are kept for the backward pass:
peak memory is chunk x vocabulary instead of tokens x vocabulary, at no extra products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.clock import Clock
from pipeline.products import has_fast_product, product, sum_of_outer
from pipeline.protocols import Head


class SoftmaxHead(Head):
    """Binds the backbone's output matrix; knows the two ways architectures alter their logits."""

    def __init__(
        self, chunk_tokens: int = 2048, logit_scale: float = 1.0, logit_softcap: float | None = None
    ) -> None:
        super().__init__()
        self.chunk_tokens = chunk_tokens
        self.logit_scale = logit_scale
        self.logit_softcap = logit_softcap

    def bind(self, output_weight: Tensor | None, output_bias: Tensor | None = None) -> None:
        if output_weight is None:
            raise ValueError("a softmax head needs the backbone's output matrix")
        # The same Parameter objects, registered here too: ZeRO-3 gathers what a module owns.
        self.weight = output_weight
        self.bias = output_bias
        self.vocab_size, self.width = output_weight.shape

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        loss_sum = _ChunkedCrossEntropy.apply(
            hidden.flatten(0, -2),
            self.weight,
            self.bias,
            targets.flatten(),
            weights.flatten(),
            self.chunk_tokens,
            self.logit_scale,
            self.logit_softcap,
            torch.is_grad_enabled(),  # always off inside the function
        )
        return loss_sum, weights.sum()

    def log_prob(self, hidden: Tensor) -> Tensor:
        logits = nn.functional.linear(hidden, self.weight, self.bias).float()
        return shape_logits(logits, self.logit_scale, self.logit_softcap).log_softmax(dim=-1)

    def flops(self, clock: Clock) -> float:
        return self.dense_flops()

    def dense_flops(self) -> float:
        return 2.0 * self.vocab_size * self.width


def shape_logits(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Logits as the architecture wants them: scaled, then soft-capped."""
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def chunk_losses(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    scale: float,
    softcap: float | None,
    train: bool,
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropies (N,) fp32 of logits (N, V), which are used up, and with `train` the
    gradient of their sum with respect to the logits."""
    if logits.device.type == "cuda":
        from pipeline.heads.softmax_kernel import row_losses

        return row_losses(logits, targets, weights, scale, softcap, train), logits
    shaped = shape_logits(logits.float(), scale, softcap)
    log_z = shaped.logsumexp(dim=1)
    losses = (log_z - shaped.gather(1, targets.unsqueeze(1)).squeeze(1)) * weights
    if not train:
        return losses, shaped
    # d loss / d shaped logits = weight * (softmax - one-hot), then through the shaping.
    slope = (shaped - log_z.unsqueeze(1)).exp_()
    slope[torch.arange(len(targets), device=logits.device), targets] -= 1
    slope *= weights.unsqueeze(1)
    if softcap is not None:
        slope *= 1 - (shaped / softcap) ** 2
    if scale != 1.0:
        slope *= scale
    return losses, slope


_FP16_LIFT = 256.0


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of weighted cross-entropies; gradients of all inputs are made in the forward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,  # (N, d)
        weight: Tensor,  # (V, d)
        bias: Tensor | None,  # (V,)
        targets: Tensor,  # (N,)
        weights: Tensor,  # (N,)
        chunk: int,
        scale: float,
        softcap: float | None,
        grad_enabled: bool,
    ) -> Tensor:
        train = grad_enabled and any(ctx.needs_input_grad[:3])
        # Of rare outputs fp16 would have nothing left: they are kept larger until the loss scale
        # comes in. A power of two rounds nothing.
        lift = _FP16_LIFT if hidden.dtype == torch.float16 else 1.0
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if train else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if train else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if train and bias is not None else None
        for first in range(0, hidden.shape[0], chunk):
            rows = slice(first, first + chunk)
            logits = product(hidden[rows], weight, bias)
            losses, d_logits = chunk_losses(
                logits, targets[rows], weights[rows] * lift, scale, softcap, train
            )
            loss_sum += losses.sum() / lift
            if not train:
                continue
            if d_bias is not None:
                d_bias += d_logits.sum(dim=0, dtype=torch.float32)
            d_logits = d_logits.to(hidden.dtype)
            assert d_hidden is not None and d_weight is not None
            d_hidden[rows] = product(d_logits, weight.t())
            _add_product(d_weight, d_logits, hidden[rows])
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        ctx.lift = lift
        return loss_sum

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> Any:  # type: ignore[override]
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        d_loss = d_loss / ctx.lift
        # The loss scale comes in here, in fp32, before anything is cast down.
        return (
            (d_hidden.float() * d_loss).to(d_hidden.dtype),
            (d_weight * d_loss).to(weight_dtype),
            None if d_bias is None else (d_bias * d_loss).to(bias_dtype),
            None, None, None, None, None, None,
        )  # fmt: skip


def _add_product(total: Tensor, d_logits: Tensor, hidden: Tensor) -> None:
    """total += d_logits^T hidden, accumulated in fp32, on a GPU without a second copy."""
    if has_fast_product(hidden, d_logits):
        total += sum_of_outer(d_logits, hidden)
    elif total.dtype == d_logits.dtype:
        total.addmm_(d_logits.t(), hidden)
    else:
        total += (d_logits.t() @ hidden).float()
