"""A whole training step of a block-sparse Transformer beside the dense one.

    python benchmarks/mst.py [--quick] [--json FILE] [--device cpu|cuda]

A byte-level GPT-2 with 90 % of its blocks of 64 x 64 left out; forward, backward and AdamW over all
parameters, the dense head included. Peers, in the same run: `dense`, the model as `transformers`
builds it, and `masked`, the same sparse model with dense products by the library ours takes, which
is what a dense step of ours costs. `upkeep` is what masks cost in the exact form of single weights:
masking gradients in every step and a hundredth of an update of the topology, in per cent of the
dense step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.device import device_of, device_options, seconds
from benchmarks.harness import Row, interleaved, report, row
from pipeline.clock import Clock
from pipeline.environment import keep_freed_memory
from pipeline.heads.softmax import SoftmaxHead
from pipeline.models.transformer import TransformerBackbone, transformer_config
from pipeline.optim.build import build_optimizer
from pipeline.recipe.model import TransformerConfig
from pipeline.recipe.optim import OptimConfig
from pipeline.recipe.sparsity import MixedConfig, PhaseConfig
from pipeline.seeds import generator_for
from pipeline.sparsity.mixed import MixedSparsity
from pipeline.sparsity.topology import evolve, scores
from pipeline.train.module import TrainModule

_BYTES = 256


class Size(NamedTuple):
    """A model and what it computes at once."""

    width: int
    layers: int
    window: int
    windows: int


_CPU_SIZES = [Size(512, 8, 256, 8)]
# At width 768 an H100 waits for the launches of 32,768 bytes, in every arm; four times as many are
# there to see the products themselves.
_GPU_SIZES = [Size(768, 8, 256, 128), Size(768, 8, 256, 512), Size(2048, 8, 256, 128)]


class Arm:
    """A model in training, dense (executor None) or at a density of 0.1."""

    def __init__(self, size: Size, executor: str | None, block: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        config = {"n_layer": size.layers, "n_head": size.width // 64, "n_embd": size.width,
                  "n_positions": size.window, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
                  "attn_pdrop": 0.0}  # fmt: skip
        section = TransformerConfig(kind="transformer", config=config)
        with device:  # drawn there: a GPU does it a hundred times faster
            backbone = TransformerBackbone(transformer_config(section, _BYTES, size.window, {}))
        if executor is None:  # as `transformers` has it, without our products
            for module in backbone.modules():
                vars(module).pop("forward", None)
        head = SoftmaxHead()
        head.bind(backbone.output_weight())
        self.module = TrainModule(backbone, head)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.module.to(device, dtype)
        self.plugin = self._sparse(size, executor, block) if executor else None
        self.optimizer = build_optimizer(OptimConfig(lr=1e-4), self.module)
        shape = (size.windows, size.window)
        self.inputs, self.targets = (torch.randint(_BYTES, shape, device=device) for _ in range(2))
        self.weights = torch.ones(shape, device=device)

    def _sparse(self, size: Size, executor: str, block: int) -> MixedSparsity:
        phases = [PhaseConfig(name="sparse", until=1.0, density=0.1)]
        section = MixedConfig(
            kind="mixed", phases=phases, block=block, executor=executor, attention=None,
            densities="uniform",
        )  # fmt: skip
        plugin = MixedSparsity(section, 1000, size.window, size.windows * size.window, 0, 0.95)
        plugin.setup(self.module)
        plugin.before_iteration(None, Clock())  # type: ignore[arg-type]  # no engine is asked
        return plugin

    def step(self) -> float:
        """Seconds of one training step."""
        return seconds(self.device, self._train)

    def _train(self) -> None:
        loss_sum, count, _ = self.module(self.inputs, self.targets, self.weights)
        (loss_sum / count).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def upkeep(self) -> float:
        """Seconds a step spends on masks: its gradients, and a hundredth of an update."""
        assert self.plugin is not None
        matrices = self.plugin.matrices
        gradients = [torch.randn_like(matrix.parameter) for matrix in matrices]
        masks = [matrix.full_mask(self.device) for matrix in matrices]

        def mask() -> None:
            for gradient, active in zip(gradients, masks, strict=True):
                gradient.mul_(active)

        def update() -> None:
            for matrix, gradient in zip(matrices, gradients, strict=True):
                weight = matrix.parameter.detach().float()
                evolve(
                    matrix.mask.to(self.device), scores(weight, 1), scores(gradient.float(), 1),
                    int(matrix.mask.sum()), 0.3, 0.75, generator_for(0, 0, matrix.name),
                )  # fmt: skip

        return seconds(self.device, mask) + seconds(self.device, update) / 100


def size_rows(size: Size, device: torch.device, quick: bool) -> list[Row]:
    """The rows of one size."""
    executor = "triton" if device.type == "cuda" else "auto"
    arms = {
        "ours": Arm(size, executor, 64, device),
        "dense": Arm(size, None, 1, device),
        "masked": Arm(size, "masked", 64, device),
    }
    rounds = 2 if quick else 7
    found = interleaved({name: arm.step for name, arm in arms.items()}, rounds)
    name = f"step mst-block s=90 d={size.width}"
    metric = f"ms of {size.windows * size.window:,} bytes"
    rows = [
        row(name, metric, 1000 * found["ours"], 1000 * found[peer], peer, lower_is_better=True)
        for peer in ("dense", "masked")
    ]
    arms.clear()
    upkeep = interleaved({"ours": Arm(size, "masked", 1, device).upkeep}, min(rounds, 3))["ours"]
    return [*rows, row(f"upkeep mst-element d={size.width}", "% of a step",
                       100 * upkeep / found["dense"])]  # fmt: skip


def main() -> None:
    """Run the sizes of the device."""
    arguments = device_options(__doc__ or "").parse_args()
    device = device_of(arguments)
    keep_freed_memory()  # as every run does first
    rows = []
    for size in _CPU_SIZES if device.type == "cpu" else _GPU_SIZES:
        rows += size_rows(size, device, arguments.quick)
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
