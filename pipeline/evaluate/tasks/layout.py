"""Requests side by side: what the options of an example have in common is laid out once.

    prefix (B, P)     what an example's options share, padded on the left
    tails (B, O, T)   what follows it in each option, padded on the right

Column 0 of an option's predictions is what the model says after the prefix, column t what it says
after t tokens of the tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.evaluate.tasks.requests import Option, Request


class Layout(NamedTuple):
    """`judged` (N, 3) names example, option and column of each prediction, `targets` (N,) the id
    that should be predicted there; lengths are those without padding, in tokens."""

    prefix: Tensor
    prefix_lengths: Tensor  # (B,)
    tails: Tensor
    tail_lengths: Tensor  # (B, O)
    judged: Tensor
    targets: Tensor

    @property
    def longest(self) -> int:
        """Tokens of the longest option with what it shares."""
        return int((self.prefix_lengths.unsqueeze(1) + self.tail_lengths).max())

    def to(self, device: torch.device) -> Layout:
        return Layout(*(part.to(device) for part in self))


def shared(options: Sequence[Option]) -> int:
    """How many tokens from the first on all options share, judged ones left out."""
    most = min(len(option.ids) - option.judged for option in options)
    columns = zip(*(option.ids[:most] for option in options), strict=False)
    return sum(1 for _ in takewhile(lambda column: len({*column}) == 1, columns))


def width(request: Request) -> int:
    """Tokens that are read for a request: the shared ones once, then what is left of each."""
    common = shared(request.options)
    return common + sum(len(option.ids) - 1 - common for option in request.options)


def lay_out(requests: Sequence[Request]) -> Layout:
    """All options of the requests; an example with fewer options than another has empty ones."""
    common = [shared(request.options) for request in requests]
    # The last token of an option is only predicted.
    tails = [
        [option.ids[start:-1] for option in request.options]
        for request, start in zip(requests, common, strict=True)
    ]
    most = max(map(len, tails))
    longest = max(len(tail) for own in tails for tail in own)
    prefix = torch.zeros(len(requests), max(1, *common), dtype=torch.int64)
    padded = torch.zeros(len(requests), most, longest, dtype=torch.int64)
    lengths = torch.zeros(len(requests), most, dtype=torch.int64)
    judged, targets = [], []
    for row, (request, start) in enumerate(zip(requests, common, strict=True)):
        if start:
            prefix[row, -start:] = torch.tensor(request.options[0].ids[:start])
        for place, (option, tail) in enumerate(zip(request.options, tails[row], strict=True)):
            padded[row, place, : len(tail)] = torch.tensor(tail, dtype=torch.int64)
            lengths[row, place] = len(tail)
            first = len(tail) + 1 - option.judged
            judged += [(row, place, column) for column in range(first, len(tail) + 1)]
            targets += option.ids[-option.judged :]
    return Layout(
        prefix, torch.tensor(common), padded, lengths, torch.tensor(judged), torch.tensor(targets)
    )
