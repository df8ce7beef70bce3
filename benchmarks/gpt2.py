"""Training GPT-2 124M at 1,024 positions in bf16: our whole step beside loops written by hand.

    python benchmarks/gpt2.py [--quick] [--json FILE] [--device cpu|cuda]

For a GPU of 80 GB. Ours is the loop as a run has it, at ZeRO 1, with the layers compiled and the
head of `--library`. Peers in the same run: the same model of `transformers` under autocast with
fused AdamW, as it is (`bare-loop-eager`), and with its layers and the cross-entropy compiled
(`bare-loop`). The last row sets our FLOPs against what square products of bf16 matrices reach on
the same device. Without a GPU, and with `--quick`, a functional check on a small model.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.device import device_of, device_options, seconds
from benchmarks.harness import interleaved, report, row
from pipeline.environment import free_port, prepare_environment

_ROOT = Path(__file__).parents[1]
_STEPS = 4  # of an arm in its turn


class Case:
    """What is trained, and on how much at once."""

    def __init__(self, small: bool, micro_batch: int, accumulation: int) -> None:
        self.name = "gpt2 2x64 T=64 bf16" if small else "gpt2 124M T=1024 bf16"
        self.window, self.words = (64, 500) if small else (1024, 50304)
        self.micro_batch = 2 if small else micro_batch
        self.accumulation = accumulation
        shape = {"n_layer": 2, "n_head": 2, "n_embd": 64} if small else {}
        self.config = {"n_positions": self.window, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
                       "attn_pdrop": 0.0, **shape}  # fmt: skip

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.micro_batch * self.accumulation * self.window


def prepare(case: Case, folder: Path, library: str | None, compiled: bool) -> Path:
    """A recipe over random words, of which the tokenizer knows every one."""
    from data_prep.prepare import prepare

    random = np.random.default_rng(0)
    drawn = random.integers(0, case.words, (400, 5000))
    drawn[:12] = np.resize(np.arange(case.words), (12, 5000))
    # Letters alone: a number would be cut into several words.
    letters = ["".join(triple) for triple in product(ascii_lowercase, repeat=4)]
    text = "\n".join(" ".join(letters[number] for number in line) for line in drawn)
    (folder / "words.txt").write_text(text)
    batch = case.micro_batch * case.accumulation
    tree = {
        "run": {"name": "gpt2", "folder": str(folder / "runs"), "steps": 10**6, "seed": 1},
        "data": {"folder": str(folder / "prepared"),
                 "sources": [{"kind": "text", "path": str(folder / "words.txt"),
                              "document": "line"}],
                 "split": {"validation": 0.05, "test": 0.05}, "order": "shuffled"},
        "tokenizer": {"kind": "word", "vocab_size": case.words},
        "model": {"kind": "transformer", "config": case.config},
        "head": {"kind": "softmax", "library": library},
        "batch": {"global_batch": batch, "micro_batch": case.micro_batch,
                  "window_tokens": case.window},
        "optim": {"lr": 1e-4, "decay": "none", "gradient_clip_norm": 1.0},
        "precision": {"dtype": "bf16"},
        "engine": {"zero_stage": 1, "compile": compiled},
    }  # fmt: skip
    path = folder / "gpt2.yaml"
    path.write_text(yaml.safe_dump(tree))
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(path)
    return path


def our_run(recipe_path: Path) -> tuple[Callable[[], None], float]:
    """A turn of ours, and the FLOPs of a token."""
    from pipeline.recipe import load_recipe
    from pipeline.train.engine import init_distributed
    from pipeline.train.loop import train_step
    from pipeline.train.start import start_run

    with contextlib.redirect_stdout(io.StringIO()):
        init_distributed(2)
        run = start_run(load_recipe(recipe_path))

    def turn() -> None:
        for _ in range(_STEPS):
            began = time.perf_counter()
            result = train_step(run)
            run.meters.train_s += time.perf_counter() - began
        with contextlib.redirect_stdout(io.StringIO()):
            run.log_step(result)

    return turn, 3 * (run.forward_flops.total + run.module.head.dense_flops())


def bare_loop(case: Case, device: torch.device, compiled: bool) -> Callable[[], None]:
    """The loop that one would write by hand, over batches that lie on the device already."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from pipeline.models.compile import compile_layers

    config = AutoConfig.for_model("gpt2", vocab_size=case.words, **case.config)
    model: Any = AutoModelForCausalLM.from_config(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    cross_entropy = nn.functional.cross_entropy
    if compiled:
        compile_layers(model)
        cross_entropy = torch.compile(cross_entropy, dynamic=False)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    shape = (case.micro_batch, case.window + 1)

    def turn() -> None:
        for _ in range(_STEPS):
            for _ in range(case.accumulation):
                ids = torch.randint(0, case.words, shape, device=device)
                (loss_of(ids) / case.accumulation).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return turn


def product_flops_per_s(device: torch.device, width: int) -> float:
    """What a product of square bf16 matrices reaches."""
    a, b = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    runs = [seconds(device, lambda: a @ b, 10) for _ in range(5)]
    return 2 * width**3 / sorted(runs)[2]


def main() -> None:
    """Train in turns."""
    parser = device_options(__doc__ or "")
    parser.add_argument("--micro-batch", type=int, default=32, help="windows at once (default 32)")
    parser.add_argument("--accumulation", type=int, default=4, help="of a step (default 4)")
    parser.add_argument("--library", choices=("liger", "cce", "torch"), help="of the head")
    parser.add_argument("--eager", action="store_true", help="do not compile our model")
    parser.add_argument("--alone", action="store_true", help="leave the peers out")
    arguments = parser.parse_args()
    prepare_environment()
    os.environ["MASTER_PORT"] = free_port()
    os.chdir(_ROOT)  # where the DeepSpeed templates lie
    device = device_of(arguments)
    small = arguments.quick or device.type == "cpu"
    case = Case(small, arguments.micro_batch, arguments.accumulation)
    with tempfile.TemporaryDirectory() as folder:
        compiled = device.type == "cuda" and not arguments.eager
        ours, flops = our_run(prepare(case, Path(folder), arguments.library, compiled))
        arms = {"ours": ours}
        if not arguments.alone:
            arms["bare-loop"] = bare_loop(case, device, compiled=device.type == "cuda")
            arms["bare-loop-eager"] = bare_loop(case, device, compiled=False)
        turns = {name: lambda arm=arm: seconds(device, arm) for name, arm in arms.items()}
        found = interleaved(turns, 2 if arguments.quick else 5)
    rates = {name: _STEPS * case.tokens / value / 1000 for name, value in found.items()}
    rows = [
        row(case.name, "thousand tokens/s", rates["ours"], rates[peer], peer)
        for peer in rates
        if peer != "ours"
    ] or [row(case.name, "thousand tokens/s", rates["ours"])]
    ceiling = product_flops_per_s(device, 512 if small else 8192) / 1e12
    reached = rates["ours"] * flops / 1e9
    rows.append(row(case.name, "TFLOP/s", reached, ceiling, "matrix-product"))
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
