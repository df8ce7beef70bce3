"""Exact attention under a sparse pattern in O(T (window + T / window)) time, O(T) memory.

In blocks of `window` positions every pattern is a union of few pieces, and every piece is plain
causal attention between equally long runs of queries and keys: fused kernels without a mask do it,
and one autograd function merges the pieces (`causal_kernels` says how).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from data_prep.errors import RecipeError
from pipeline.sparsity.causal_kernels import kernel_for
from pipeline.sparsity.patterns import Kind, Pattern


def sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scale: float | None = None
) -> Tensor:
    """What `scaled_dot_product_attention` gives under `pattern.mask(T)`, gradients included.

    query (B, H, T, D), key and value (B, G, T, D) where G divides H; the result is (B, H, T, D).
    `scale` is 1 / sqrt(D) by default. There is no dropout.
    """
    _check_shapes(query, key, value)
    batch, heads, length, depth = query.shape
    window = min(pattern.window, length)
    groups = heads // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    # What is padded comes last, so nothing before it sees it.
    padding = (0, 0, 0, -length % window)
    q, k, v = (
        nn.functional.pad(x, padding).reshape(batch * heads, -1, window, depth)
        for x in (query, key, value)
    )
    pieces = _pieces(pattern.kind, kernel_for(q).slides)
    out = _Merged.apply(q, k, v, pieces, depth**-0.5 if scale is None else scale)
    return out.view(batch, heads, -1, depth)[:, :, :length]


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    batch, heads, length, depth = query.shape
    groups = key.shape[1]
    expected = (batch, groups, length, depth)
    if key.shape != expected or value.shape != expected or heads % groups:
        raise RecipeError(
            f"sparse attention: found query {tuple(query.shape)}, key {tuple(key.shape)} and value "
            f"{tuple(value.shape)}; expected as many positions and features in all three and query "
            "heads in multiples of the others: use dense attention here"
        )


@dataclass(frozen=True)
class _Piece:
    """Views (S, runs, length, ...) of blocks (S, n, window, ...), for queries and for keys.

    The t-th query of a run attends to the first t keys of that run, or to the last `window` of
    those in a `sliding` piece; where all runs have the same keys, those are given once. A `reverse`
    piece counts from the end of its runs.
    """

    queries: Callable[[Tensor], Tensor]
    keys: Callable[[Tensor], Tensor]
    reverse: bool = False
    sliding: bool = False

    def take(self, view: Tensor) -> Tensor:
        """From positions to the order in which the piece is causal, and back again."""
        return view.flip(2) if self.reverse else view


def _all(x: Tensor) -> Tensor:
    return x


def _columns(x: Tensor) -> Tensor:
    """Runs of positions that are `window` apart."""
    return x.transpose(1, 2)


def _line(x: Tensor) -> Tensor:
    """All positions as one run; a view, or an error."""
    return x.view(len(x), 1, -1, x.shape[-1])


_OWN = _Piece(_all, _all)
# Position r of a block sees those after r in the block before: causal when read from the end.
_PREVIOUS = _Piece(lambda x: x[:, 1:, :-1], lambda x: x[:, :-1, 1:], reverse=True)
_STRIDED = _Piece(_columns, _columns)
# The same without the position itself: keys are one step behind.
_EARLIER = _Piece(lambda x: _columns(x)[:, :, 1:], lambda x: _columns(x)[:, :, :-1])
_SUMMARY = _Piece(lambda x: _columns(x)[:, :, 1:], lambda x: _columns(x)[:, -1:, :-1])

# Both together, for kernels that slide.
_SLIDING = _Piece(_line, _line, sliding=True)

# No pair (i, j) is in two pieces of a pattern, and every i and j is in the first.
_PIECES: dict[Kind, tuple[_Piece, ...]] = {
    "local": (_OWN, _PREVIOUS),
    "strided": (_STRIDED,),
    "local_strided": (_OWN, _PREVIOUS, _EARLIER),
    "fixed": (_OWN, _SUMMARY),
}


def _pieces(kind: Kind, slides: bool) -> tuple[_Piece, ...]:
    pieces = _PIECES[kind]
    if slides and pieces[:2] == (_OWN, _PREVIOUS):
        return (_SLIDING, *pieces[2:])
    return pieces


class _Merged(torch.autograd.Function):
    """Attention of blocks (S, n, window, D) over the union of pieces."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pieces: tuple[_Piece, ...], scale: float
    ) -> Tensor:
        kernel = kernel_for(q)
        wide = torch.promote_types(q.dtype, torch.float32)
        total = q.new_empty(q.shape, dtype=wide if len(pieces) > 1 else q.dtype)
        lse = q.new_empty((*q.shape[:3], 1), dtype=wide)
        for piece in pieces:
            queries, keys, values = _operands(piece, q, k, v)
            if not queries.numel():
                continue
            window = q.shape[2] if piece.sliding else None
            part, part_lse = kernel.forward(queries, keys, values, scale, window)
            merged, before = piece.queries(total), piece.queries(lse)
            part, part_lse = piece.take(part), piece.take(part_lse.unsqueeze(-1))
            if piece is pieces[0]:
                merged.copy_(part)
                before.copy_(part_lse)
                continue
            after = torch.logaddexp(before, part_lse)
            merged.mul_((before - after).exp_()).addcmul_(part, (part_lse - after).exp_())
            before.copy_(after)
        out = total.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.pieces, ctx.scale = pieces, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        kernel = kernel_for(q)
        d_q, d_k, d_v = (torch.empty_like(x) for x in (q, k, v))
        for piece in ctx.pieces:
            operands = _operands(piece, q, k, v)
            if not operands[0].numel():
                continue
            above, result, log = (piece.take(piece.queries(x)) for x in (grad, out, lse))
            window = q.shape[2] if piece.sliding else None
            found = kernel.backward(above, *operands, result, log.squeeze(-1), ctx.scale, window)
            views = (piece.queries(d_q), piece.keys(d_k), piece.keys(d_v))
            for view, part in zip(views, found, strict=True):
                part = piece.take(part).sum_to_size(view.shape)
                view.copy_(part) if piece is ctx.pieces[0] else view.add_(part)
        return d_q, d_k, d_v, None, None


def _operands(piece: _Piece, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    queries = piece.take(piece.queries(q))
    keys, values = (piece.take(piece.keys(x)).expand_as(queries) for x in (k, v))
    return queries, keys, values
