"""Speed of sparse attention, forward and backward, beside dense causal attention.

    python benchmarks/attention.py [--quick] [--json FILE] [--device cpu|cuda]

The peer, in the same run, is `torch.nn.functional.scaled_dot_product_attention` of the same
tensors. They lie in memory as a model makes them, (B, T, H, D).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.device import device_of, device_options, steady_seconds
from benchmarks.harness import Row, interleaved, report, row
from pipeline.sparsity.attention import sparse_attention
from pipeline.sparsity.patterns import Kind, Pattern

_HEADS, _FEATURES, _WINDOW = 8, 64, 128
_KINDS: tuple[Kind, ...] = ("local", "local_strided", "fixed")
_LENGTHS = (1024, 2048, 4096, 8192)
_POSITIONS = {"cpu": 8192, "cuda": 65536}  # of all sequences of a batch

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Case:
    """Sequences of one length; an arm returns the milliseconds of a forward and backward."""

    def __init__(self, length: int, device: torch.device) -> None:
        batch = max(1, _POSITIONS[device.type] // length)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        torch.manual_seed(0)
        draws = torch.randn(4, batch, length, _HEADS, _FEATURES, device=device, dtype=dtype)
        self._q, self._k, self._v, self._d_out = draws.transpose(2, 3)
        self._device = device
        for leaf in (self._q, self._k, self._v):
            leaf.requires_grad_()

    def milliseconds(self, attention: Attention) -> float:
        return 1e3 * steady_seconds(self._device, partial(self._through, attention))

    def _through(self, attention: Attention) -> None:
        out = attention(self._q, self._k, self._v)
        torch.autograd.grad(out, (self._q, self._k, self._v), self._d_out)


def case_rows(length: int, device: torch.device, rounds: int) -> list[Row]:
    """The rows of one length."""
    case = Case(length, device)
    attentions: dict[str, Attention] = {
        "dense": partial(nn.functional.scaled_dot_product_attention, is_causal=True)
    }
    for kind in _KINDS:
        attentions[kind] = partial(sparse_attention, pattern=Pattern(kind, _WINDOW))
    arms = {name: partial(case.milliseconds, one) for name, one in attentions.items()}
    found = interleaved(arms, rounds)
    return [
        row(
            f"attention {kind} T={length} w={_WINDOW} {device.type}", "ms forward+backward",
            found[kind], found["dense"], "dense", lower_is_better=True,
        )
        for kind in _KINDS
    ]  # fmt: skip


def main() -> None:
    """Run every length on the device."""
    arguments = device_options(__doc__ or "").parse_args()
    device = device_of(arguments)
    lengths = _LENGTHS[:2] if arguments.quick else _LENGTHS
    rows = []
    for length in lengths:
        rows += case_rows(length, device, rounds=3 if arguments.quick else 9)
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
