"""Sparse attention in a built `transformers` model, switched on and off between iterations.

The library lets a model's configuration name the function that computes its attention. One is
registered for each pattern; naming the former one again leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from data_prep.errors import RecipeError
from pipeline.sparsity.attention import sparse_attention
from pipeline.sparsity.patterns import Pattern

# What architectures hand to attention without changing what it is to compute.
_HARMLESS = {"is_causal", "position_ids", "cache_position", "use_cache"}


class AttentionSwitch:
    """`pattern` holds for every layer of a causal LM; None is its attention as it was built.

    RecipeError for architectures whose attention the patterns would change in another way than
    asked, or would not reach. Needs real weights: not for the meta device.
    """

    def __init__(self, causal_lm: Any) -> None:
        self._model = causal_lm
        self._dense = causal_lm.config._attn_implementation
        self._pattern: Pattern | None = None
        try:
            self._check()
        finally:
            self.pattern = None

    @property
    def pattern(self) -> Pattern | None:
        return self._pattern

    @pattern.setter
    def pattern(self, pattern: Pattern | None) -> None:
        if pattern != self._pattern:  # set before every iteration, changed a few times in a run
            name = self._dense if pattern is None else _register(pattern)
            self._model.set_attn_implementation(name)
            self._pattern = pattern

    @torch.no_grad()
    def _check(self) -> None:
        """Prove on a few tokens that every layer obeys: alone with itself, no token sees another.

        The first pass trains, so that attention with dropout refuses.
        """
        self.pattern = Pattern("local", 1)
        weight = self._model.get_input_embeddings().weight
        ids = (torch.arange(4, device=weight.device) % weight.shape[0]).unsqueeze(0)
        other = ids.clone()
        other[:, 0] = ids[:, 1]
        was_training = self._model.training
        try:
            with torch.random.fork_rng([weight.device] if weight.is_cuda else []):
                self._hidden(ids, training=True)
            one, two = (self._hidden(x, training=False)[:, 1:] for x in (ids, other))
        finally:
            self._model.train(was_training)
        if not torch.allclose(one, two, rtol=1e-4, atol=1e-5):
            raise RecipeError(
                f"sparse attention: tokens of {self._model.config.model_type!r} see each other by "
                "other ways than the attention interface of transformers; expected every layer to "
                "use it: choose another architecture or dense attention (sparsity.attention: null)"
            )

    def _hidden(self, ids: Tensor, training: bool) -> Tensor:
        self._model.train(training)
        return self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def _register(pattern: Pattern) -> str:
    """The name under which the library finds this pattern."""
    name = f"sparse_{pattern.kind}_{pattern.window}"
    AttentionInterface.register(name, partial(_attention, pattern))
    AttentionMaskInterface.register(name, _no_mask)
    return name


def _attention(
    pattern: Pattern, module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
    attention_mask: Tensor | None, dropout: float = 0.0, scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """As the library calls it: (B, H, T, D) tensors in, (B, T, H, D) out."""
    if dropout:
        raise RecipeError(
            f"sparse attention: found attention dropout {dropout}, expected 0: set the "
            "architecture's key for it (attn_pdrop, attention_dropout) to 0 in model.config"
        )
    changing = {k for k, v in others.items() if v is not None and v is not False} - _HARMLESS
    causal = others.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        changing.add("is_causal=False")
    if attention_mask is not None:
        changing.add("attention_mask")
    if changing:
        _refuse(", ".join(sorted(changing)))
    return sparse_attention(query, key, value, pattern, scaling).transpose(1, 2), None


def _no_mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None, **_: Any,
) -> None:  # fmt: skip
    """In place of a (T, T) mask: the pattern is causal by itself, and nothing else is masked."""
    if mask_function is not causal_mask_function:
        _refuse("a sliding window, chunks, packed sequences or tokens that see later ones")
    if q_length != kv_length:
        _refuse("a cache of earlier tokens")
    if attention_mask is not None and not attention_mask.all():
        _refuse("padding")


def _refuse(found: str) -> None:
    raise RecipeError(
        f"sparse attention: found {found}; expected full causal attention over whole windows: "
        "change model.config, choose another architecture, or use dense attention"
    )
