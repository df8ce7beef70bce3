"""Full softmax cross-entropy as libraries compute it, for the machine on which one is faster.

torch: `torch.nn.functional.linear_cross_entropy` (torch 2.13). deepspeed: its chunked
cross-entropy, whose logits exist in full. liger: Liger-Kernel's fused linear cross-entropy, and
cce: Apple's Cut Cross-Entropy; both need a GPU and never hold the logits.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

from data_prep.errors import RecipeError
from pipeline.heads.softmax import SoftmaxHead

_IGNORED = -100
_PACKAGES = {
    "liger": ("liger_kernel", "liger-kernel"),
    "cce": ("cut_cross_entropy", "cut-cross-entropy"),
}


class LibrarySoftmaxHead(SoftmaxHead):
    """Trains by the library; evaluates by our own. Token weights must be 0 or 1.

    RecipeError when the library is not installed or does not work on this machine.
    """

    def __init__(self, library: str | None, chunk_tokens: int = 2048, logit_scale: float = 1.0):
        super().__init__(chunk_tokens, logit_scale)
        self.library = library
        _check(library)

    def bind(self, output_weight: Tensor | None, output_bias: Tensor | None = None) -> None:
        """RecipeError for a bias that the library does not take."""
        if self.library == "cce" and output_bias is not None:
            raise RecipeError(
                "head.library=cce takes no bias and this architecture's output has one: use "
                "head.library=liger or null"
            )
        super().bind(output_weight, output_bias)

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return super().loss(hidden, targets, weights)
        h = hidden.flatten(0, -2) * self.logit_scale
        kept = targets.flatten().masked_fill(weights.flatten() == 0, _IGNORED)
        return self._loss_sum(h, kept).float(), weights.sum()

    def _loss_sum(self, h: Tensor, targets: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.logit_scale
        if self.library == "torch":
            return nn.functional.linear_cross_entropy(
                h, self.weight, targets, linear_bias=bias, reduction="none",
                ignore_index=_IGNORED,
            ).float().sum()  # fmt: skip  # a sum in half precision would be coarse, or too large
        if self.library == "deepspeed":
            from deepspeed.runtime.chunked_cross_entropy import chunked_cross_entropy

            logits = nn.functional.linear(h, self.weight, bias)
            return chunked_cross_entropy(logits, targets, _IGNORED, "sum")
        if self.library == "liger":
            from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

            return liger_fused_linear_cross_entropy(
                h, self.weight, targets, bias=bias, ignore_index=_IGNORED, reduction="sum"
            )
        from cut_cross_entropy import linear_cross_entropy

        return linear_cross_entropy(h, self.weight, targets, ignore_index=_IGNORED, reduction="sum")


def _check(library: str | None) -> None:
    if library == "torch" and not hasattr(nn.functional, "linear_cross_entropy"):
        raise RecipeError(
            f"head.library=torch needs torch 2.13, found {torch.__version__}: update it, or set "
            "head.library=null"
        )
    if library in _PACKAGES:
        module, package = _PACKAGES[library]
        if not torch.cuda.is_available():
            raise RecipeError(
                f"head.library={library} needs a GPU, none was found: set head.library=null"
            )
        if importlib.util.find_spec(module) is None:
            raise RecipeError(f"head.library={library} needs a package: pip install {package}")
