"""How a mask evolves: drop by magnitude, grow by gradient and at random (Hu et al. 2024, Algorithm
1; RigL is its special case without the random part, SET the one without the gradient).

A mask is over units: single weights, or square blocks whose score is the sum over the block. All
functions are pure; randomness comes from the generator they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor


def random_mask(shape: tuple[int, int], active: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) bool with `active` units chosen uniformly."""
    order = torch.randperm(shape[0] * shape[1], generator=generator)
    mask = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
    mask[order[:active]] = True
    return mask.view(shape)


def scores(values: Tensor, block: int) -> Tensor:
    """Sum of |values| over every unit of a (rows, columns) matrix."""
    if block == 1:
        return values.abs()
    rows, columns = values.shape
    return values.abs().view(rows // block, block, columns // block, block).sum(dim=(1, 3))


def spread(mask: Tensor, block: int) -> Tensor:
    """The mask of single weights that a mask of units stands for."""
    return mask if block == 1 else mask.repeat_interleave(block, 0).repeat_interleave(block, 1)


def evolve(
    mask: Tensor,
    weight_scores: Tensor,
    gradient_scores: Tensor,
    active: int,
    drop_fraction: float,
    gradient_share: float,
    generator: torch.Generator,
) -> Tensor:
    """The next mask, with `active` units.

    Of n active units max(f n, n - active) of the smallest weight go, so a falling target drops more
    than it grows and a rising one grows more. What has just gone may come back.
    """
    before = int(mask.sum())
    dropped = max(int(drop_fraction * before), before - active)
    keep = _largest(weight_scores.masked_fill(~mask, -1.0), before - dropped)
    grown = active - (before - dropped)
    by_gradient = round(gradient_share * grown)
    chosen = keep | _largest(gradient_scores.masked_fill(keep, -1.0), by_gradient)
    return chosen | _drawn(~chosen, grown - by_gradient, generator)


def _largest(values: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest."""
    found = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    found[values.flatten().topk(count, sorted=False).indices] = True
    return found.view(values.shape)


def _drawn(free: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Mask of `count` units, uniform over the free ones. The generator is a processor's, so that
    every rank and device draws the same; it works for the few units that an update draws, not for
    all of a matrix."""
    found, left = torch.zeros_like(free), free.clone()
    while count > 0:
        available = int(left.sum())
        if 4 * count > available:
            chance = torch.rand(free.shape, generator=generator).to(free.device)
            return found | _largest(chance.masked_fill(~left, -1.0), count)
        tries = 2 * count * free.numel() // available
        ids = torch.randint(free.numel(), (tries,), generator=generator).to(free.device)
        ids = ids[left.view(-1)[ids]].unique()
        ids = ids[torch.randperm(len(ids), generator=generator)[:count].to(free.device)]
        found.view(-1)[ids] = True
        left.view(-1)[ids] = False
        count -= len(ids)
    return found
