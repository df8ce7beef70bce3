"""The export of a GPT-2 small from a checkpoint, beside reading and saving alone.

    python benchmarks/export.py [--quick] [--json FILE]

12 layers of 768 and a vocabulary of 50,257, random weights, from checkpoints of one training step
at ZeRO stages 0 and 1, fp32. Ours is the whole stage: hashes verified, weights put together, saved,
loaded again and compared with the trained module, tokenizer and cards. The peer puts the weights
together, loads them into the model and saves it, and proves nothing. Every round is a process of
its own; memory is its peak less what it held after its imports.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Row, interleaved, options, report, row

ROOT = Path(__file__).parents[1]
_VOCABULARY = 50257


def write_recipe(folder: Path, layers: int, stage: int) -> Path:
    """A run of one step over made-up words, as many as GPT-2 has tokens."""
    tree = {
        "run": {"name": f"zero{stage}", "folder": str(folder / "runs"), "steps": 1},
        "data": {
            "folder": str(folder / "prepared"),
            "sources": [{"kind": "text", "path": str(folder / "words.txt"), "document": "line"}],
            "split": {"validation": 0.02, "test": 0.02},
            "duplicates": {"exact": False},
        },
        "tokenizer": {"kind": "word", "vocab_size": _VOCABULARY},
        "model": {"kind": "transformer", "config": {"n_layer": layers, "n_positions": 1024}},
        "batch": {"global_batch": 1, "micro_batch": 1, "window_tokens": 64},
        "optim": {"lr": 1e-4},
        "precision": {"dtype": "fp32"},
        "engine": {"zero_stage": stage},
        "eval": {"max_tokens": 64, "batch": 1},
    }  # fmt: skip
    path = folder / f"zero{stage}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def make_checkpoint(folder: Path, layers: int, stage: int) -> Path:
    """The recipe of a run that has been trained."""
    words = folder / "words.txt"
    if not words.exists():
        rng = random.Random(0)
        letters = "abcdefghijklmnopqrstuvwxyz"
        known = sorted({"".join(rng.choices(letters, k=5)) for _ in range(70_000)})
        lines = [" ".join(rng.choices(known, k=60)) for _ in range(8_000)]
        words.write_text("\n".join(lines) + "\n")
    recipe = write_recipe(folder, layers, stage)
    for command in (["-m", "data_prep", "prepare", recipe], ["run_pretrain.py", recipe]):
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
    return recipe


def measured(work: Callable[[], Any]) -> tuple[float, float, int]:
    """Seconds of `work`, those of the processor, and its peak of resident memory above what was
    there before, bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = _status("VmRSS")
    began, began_cpu = time.perf_counter(), time.process_time()
    work()
    seconds = time.perf_counter() - began, time.process_time() - began_cpu
    return *seconds, _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def child(arm: str, path: Path, out: Path) -> None:
    """One export in this process; prints seconds and bytes as JSON."""
    import deepspeed  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.export.hf import export_model
    from pipeline.export.weights import read_weights
    from pipeline.models.transformer import transformer_config
    from pipeline.recipe import load_recipe
    from pipeline.run_folder import RunFolder

    torch.set_num_threads(2)
    recipe = load_recipe(path, [f"export.folder={out}"])
    checkpoints = RunFolder(recipe.run_folder).checkpoints
    config = transformer_config(recipe.model, _VOCABULARY, 64, {})  # type: ignore[arg-type]

    def peer() -> None:
        weights = read_weights(checkpoints / "global_step1")
        model = AutoModelForCausalLM.from_config(config)
        prefix = "backbone.causal_lm."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        model.load_state_dict(own, strict=False)
        model.save_pretrained(out)

    print(json.dumps(measured(peer if arm == "peer" else lambda: export_model(recipe))))


def stage_rows(folder: Path, layers: int, stage: int, rounds: int) -> Iterator[Row]:
    """Seconds and memory of one ZeRO stage."""
    recipe = make_checkpoint(folder, layers, stage)
    arms = ("ours", "peer")
    beside: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}

    def run(arm: str) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            command = [sys.executable, __file__, "--child", arm, recipe, Path(out) / "export"]
            done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stdout + done.stderr)
            seconds, processor, peak = json.loads(done.stdout.splitlines()[-1])
            weights = sum(file.stat().st_size for file in Path(out).rglob("*.safetensors"))
        beside[arm].append((processor, peak / weights))
        return float(seconds)

    found = interleaved({arm: partial(run, arm) for arm in arms}, rounds)
    medians = {arm: [statistics.median(v) for v in zip(*beside[arm], strict=True)] for arm in arms}
    name = "read + save"
    case = f"export {layers}x768 zero{stage}"
    yield row(case, "seconds", found["ours"], found["peer"], name, lower_is_better=True)
    for place, metric in enumerate(("processor seconds", "peak memory / weights")):
        ours, peer = (medians[arm][place] for arm in arms)
        yield row(case, metric, ours, peer, name, lower_is_better=True)


def main() -> None:
    """Both stages."""
    parser = options(__doc__ or "")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments: Any = parser.parse_args()
    if arguments.child:
        arm, path, out = arguments.child
        child(arm, Path(path), Path(out))
        return
    layers, rounds = (2, 1) if arguments.quick else (12, 3)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for stage in (0,) if arguments.quick else (0, 1):
            rows += stage_rows(Path(folder), layers, stage, rounds)
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
