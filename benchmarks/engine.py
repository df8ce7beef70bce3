"""Our whole training step beside a bare PyTorch loop, Hugging Face's Trainer, and it on DeepSpeed.

    python benchmarks/engine.py [--quick] [--json FILE] [--device cpu|cuda]

A byte-level GPT-2 in fp32 on a processor by two threads: 4 layers of 128 at 64 positions, and 6 of
384 at 256; fused AdamW, gradients clipped to 1, batches read from the same file. Ours is the loop
as a run has it: loader, engine, metrics and log lines. Peers, in the same run: `bare-loop`,
`trainer` and `trainer-deepspeed`. Every arm is a process, and they take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.device import device_of, device_options, seconds
from benchmarks.harness import Row, interleaved, report, row
from pipeline.environment import free_port, keep_freed_memory

_THREADS = 2
_BYTES = 257
_ROOT = Path(__file__).parents[1]
_SPAWN = multiprocessing.get_context("spawn")


class Size(NamedTuple):
    """A decoder and its batch."""

    layers: int
    width: int
    window: int
    batch: int
    steps: int  # that an arm takes in its turn

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.width}"


_SMALL, _LARGE = Size(4, 128, 64, 12, steps=5), Size(6, 384, 256, 4, steps=1)


class Arm:
    """One way to train, in a process of its own that waits for its turns: several engines in one
    process slow each other down, and two Trainers cannot share one."""

    def __init__(self, kind: str, size: Size, folder: Path, device: torch.device) -> None:
        self._steps = size.steps
        self._turns, theirs = _SPAWN.Pipe()
        arguments = (theirs, kind, size, folder, device)
        _SPAWN.Process(target=_work, args=arguments, daemon=True).start()

    def wait(self) -> None:
        """Until it could begin."""
        assert self._turns.recv() == "ready"

    def __call__(self) -> float:
        """Seconds of a step, the mean over one turn."""
        self._turns.send("go")
        return float(self._turns.recv()) / self._steps

    def end(self) -> None:
        self._turns.close()


def _work(
    turns: Connection, kind: str, size: Size, folder: Path, device: torch.device
) -> None:  # fmt: skip
    """The process of an arm: `zeroN` is ours, `bare-loop`, `trainer`, `trainer-deepspeed`."""
    torch.set_num_threads(_THREADS)
    _set_environment(launched=kind.startswith("zero") or kind == "trainer-deepspeed")
    os.chdir(_ROOT)  # where the DeepSpeed templates lie
    if kind.startswith("trainer"):
        _train_by_trainer(turns, size, folder, device, deepspeed=kind == "trainer-deepspeed")
        return
    steps = (
        bare_steps(size, folder, device) if kind == "bare-loop" else our_steps(kind, size, folder)
    )
    turns.send("ready")
    with contextlib.suppress(EOFError):  # the benchmark is over
        while turns.recv():
            turns.send(seconds(device, steps))


def our_steps(kind: str, size: Size, folder: Path) -> Callable[[], None]:
    """A run at a ZeRO stage, as `run_pretrain.py` makes it."""
    from pipeline.recipe import load_recipe
    from pipeline.train.engine import init_distributed
    from pipeline.train.loop import train_step
    from pipeline.train.start import start_run

    keep_freed_memory()  # as every run does first
    stage = kind.removeprefix("zero")
    recipe = load_recipe(
        folder / f"{size.name}.yaml", [f"run.name={size.name}-{kind}", f"engine.zero_stage={stage}"]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        init_distributed(2)
        run = start_run(recipe)

    def steps() -> None:
        for _ in range(size.steps):
            began = time.perf_counter()
            result = train_step(run)
            run.meters.train_s += time.perf_counter() - began
            if run.clock.applied % 10 == 0:
                with contextlib.redirect_stdout(io.StringIO()):
                    run.log_step(result)

    return steps


def bare_steps(size: Size, folder: Path, device: torch.device) -> Callable[[], None]:
    """The loop that one would write by hand."""
    model, tokens = model_of(size).to(device), tokens_of(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    random = np.random.default_rng(0)

    def steps() -> None:
        for _ in range(size.steps):
            starts = random.integers(0, len(tokens) - size.window - 1, size.batch)
            rows = np.stack([tokens[s : s + size.window + 1] for s in starts]).astype(np.int64)
            batch = torch.from_numpy(rows).to(device)
            logits = model(input_ids=batch[:, :-1]).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # as a log line would

    return steps


def model_of(size: Size) -> Any:
    """The model of the peers: what `transformers` makes of the configuration of ours."""
    from transformers import AutoModelForCausalLM

    from pipeline.models.transformer import transformer_config
    from pipeline.recipe.model import TransformerConfig

    torch.manual_seed(0)
    section = TransformerConfig(kind="transformer", config=_config(size))
    return AutoModelForCausalLM.from_config(transformer_config(section, _BYTES, size.window, {}))


def tokens_of(folder: Path) -> np.ndarray:
    """The whole training split."""
    from data_prep.shards import Prepared

    split = Prepared.open(folder / "prepared", verify=False).split("train")
    return split.windows(np.array([0]), split.tokens)[0]


class _Windows(torch.utils.data.Dataset):
    """Windows of the corpus, inputs and labels, at every start."""

    def __init__(self, size: Size, folder: Path) -> None:
        self._tokens, self._window = tokens_of(folder), size.window

    def __len__(self) -> int:
        return len(self._tokens) - self._window - 1

    def __getitem__(self, start: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self._tokens[start : start + self._window].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def _train_by_trainer(
    turns: Connection, size: Size, folder: Path, device: torch.device, deepspeed: bool
) -> None:
    """Trainer's own loop, which waits for its turn before every few steps."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Turns(TrainerCallback):
        taken, began = 0, None

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if self.taken % size.steps == 0:
                turns.send("ready" if self.began is None else time.perf_counter() - self.began)
                try:
                    turns.recv()
                except EOFError:  # the benchmark is over
                    os._exit(0)
                self.began = time.perf_counter()
            self.taken += 1

    config = None
    if deepspeed:
        config = {"zero_optimization": {"stage": 0}, "gradient_clipping": "auto",
                  "train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto",
                  "zero_allow_untested_optimizer": True,
                  "zero_force_ds_cpu_optimizer": False}  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(folder / f"trainer-{deepspeed}"), max_steps=10**6, logging_steps=10,
        per_device_train_batch_size=size.batch, learning_rate=1e-4, report_to=[],
        save_strategy="no", optim="adamw_torch_fused", disable_tqdm=True, deepspeed=config,
        use_cpu=device.type == "cpu", lr_scheduler_type="constant",
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        Trainer(
            model=model_of(size), args=arguments, train_dataset=_Windows(size, folder),
            callbacks=[Turns()],
        ).train()  # fmt: skip


def _set_environment(launched: bool) -> None:
    """As a launcher of one process would, or as nobody has."""
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}  # fmt: skip
    for name, value in variables.items():
        os.environ.pop(name, None)
        if launched:
            os.environ[name] = value


def _config(size: Size) -> dict[str, Any]:
    return {"n_layer": size.layers, "n_head": size.width // 32, "n_embd": size.width,
            "n_positions": size.window, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
            "attn_pdrop": 0.0}  # fmt: skip


def _prepare(size: Size, folder: Path) -> None:
    """The recipe of a size, written and prepared over the embedded reviews."""
    from data_prep.prepare import prepare

    corpus = _ROOT / "data_prep/sample/fine_foods_train.jsonl.xz"
    tree = {
        "run": {"name": "engine", "folder": str(folder / "runs"), "steps": 10**6, "seed": 1},
        "data": {"folder": str(folder / "prepared"),
                 "sources": [{"kind": "jsonl", "path": str(corpus), "text_field": "reviewText"}],
                 "split": {"validation": 0.05, "test": 0.05}},
        "tokenizer": {"kind": "bytes"},
        "model": {"kind": "transformer", "config": _config(size)},
        "batch": {"global_batch": size.batch, "micro_batch": size.batch,
                  "window_tokens": size.window},
        "optim": {"lr": 1e-4, "decay": "none", "gradient_clip_norm": 1.0},
        "precision": {"dtype": "fp32"},
    }  # fmt: skip
    path = folder / f"{size.name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(path)


def size_rows(
    size: Size, folder: Path, device: torch.device, stages: tuple[int, ...], rounds: int
) -> Iterator[Row]:
    """Rows of one size: every ZeRO stage beside the bare loop, stage 0 beside the Trainer too."""
    _prepare(size, folder)
    ours = [f"zero{stage}" for stage in stages]
    peers = ["bare-loop", "trainer", "trainer-deepspeed"]
    arms = {kind: Arm(kind, size, folder, device) for kind in (*ours, *peers)}
    for arm in arms.values():
        arm.wait()
    found = interleaved(dict(arms), rounds)
    for arm in arms.values():
        arm.end()
    for kind in ours:
        for peer in peers if kind == "zero0" else peers[:1]:
            yield row(f"engine {size.name} {kind}", "ms a step", 1000 * found[kind],
                      1000 * found[peer], peer, True)  # fmt: skip


def main() -> None:
    """Run both sizes."""
    arguments: argparse.Namespace = device_options(__doc__ or "").parse_args()
    device = device_of(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in (_SMALL, _LARGE):
            stages = (0,) if arguments.quick else (0, 1, 2, 3)
            rounds = 5 if arguments.quick else 25
            rows += size_rows(size, Path(folder), device, stages, rounds)
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
