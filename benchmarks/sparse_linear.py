"""Speed of a masked linear layer, forward and backward with all gradients, beside a dense one.

    python benchmarks/sparse_linear.py [--quick] [--json FILE] [--device cpu|cuda]

Peers, in the same run: `dense`, autograd over `F.linear`; and `masked`, dense products by the
library that is fastest here, their gradient masked, which is what the executors have to beat. On a
processor in fp32 by two threads, on a GPU in bf16.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.device import device_of, device_options, steady_seconds
from benchmarks.harness import Row, interleaved, report, row
from pipeline.environment import keep_freed_memory
from pipeline.sparsity.linear import SparseLinear
from pipeline.sparsity.topology import random_mask, spread

_THREADS = 2
# Executor, out, in, tokens, block, sparsities in percent.
_CPU_CASES = [
    ("gather", 3072, 768, 1024, 64, (80, 90, 95)),
    ("gather", 2048, 512, 4096, 64, (80, 90, 95)),
    ("blocks", 3072, 768, 1024, 64, (80, 90, 95)),
    ("blocks", 2048, 512, 4096, 64, (80, 90, 95)),
    ("csr", 3072, 768, 1024, 1, (95, 98)),
    ("csr", 2048, 512, 4096, 1, (95, 98)),
]
_GPU_CASES = [
    ("triton", out, inputs, 16384, block, (80, 90, 95))
    for out, inputs in ((3072, 768), (768, 3072), (8192, 2048), (2048, 8192))
    for block in (64, 128)
]


class Case:
    """One layer under one mask; an arm returns the milliseconds of a forward and backward."""

    def __init__(
        self, executor: str, out: int, inputs: int, tokens: int, block: int, sparsity: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.executor, self.block, self.device = executor, block, device
        random = torch.Generator().manual_seed(0)
        rows, columns = out // block, inputs // block
        active = round((100 - sparsity) / 100 * rows * columns)
        self.mask = random_mask((rows, columns), active, random)
        self.linear = nn.Linear(inputs, out).to(device, dtype)
        with torch.no_grad():
            self.linear.weight.mul_(spread(self.mask, block).to(device))
        self.x = torch.randn(tokens, inputs, generator=random).to(device, dtype).requires_grad_()
        # What comes from above is there before the clock starts.
        self.d_y = torch.randn(tokens, out, generator=random).to(device, dtype)

    def milliseconds(self, rounds: int) -> dict[str, float]:
        """Of the executor and its peers, on the same weights. Masks are laid out before the clock
        starts: they hold for a hundred steps."""
        arms: dict[str, Callable[[], float]] = {"dense": _Arm(self, self.linear)}
        for name in (self.executor, "masked"):
            layer = SparseLinear(self.linear)
            layer.set_mask(self.mask, self.block, name)
            arms[name] = _Arm(self, layer)
        return interleaved(arms, rounds)


class _Arm:
    """Forward and backward by one executor."""

    def __init__(self, case: Case, layer: nn.Module) -> None:
        self._case, self._layer = case, layer

    def __call__(self) -> float:
        return 1000 * steady_seconds(self._case.device, self._run)

    def _run(self) -> None:
        self._layer(self._case.x).backward(self._case.d_y)
        for tensor in (self._case.x, *self._layer.parameters()):
            tensor.grad = None


def main() -> None:
    """Run the cases of the device."""
    arguments = device_options(__doc__ or "").parse_args()
    device = device_of(arguments)
    keep_freed_memory()  # as every run does first
    torch.set_num_threads(_THREADS)
    rows: list[Row] = []
    for executor, out, inputs, tokens, block, sparsities in (
        _CPU_CASES if device.type == "cpu" else _GPU_CASES
    ):
        for sparsity in sparsities:
            case = Case(executor, out, inputs, tokens, block, sparsity, device)
            found = case.milliseconds(7 if arguments.quick else 31)
            wide = " b=128" if block == 128 else ""
            name = f"sparse_linear {executor} {out}x{inputs}{wide} s={sparsity}"
            rows += [
                row(name, "ms forward and backward", found[executor], found[peer], peer, True)
                for peer in ("dense", "masked")
            ]
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
