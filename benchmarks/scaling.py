"""Weak scaling: what a step costs on N devices beside one, and how much of it is waiting.

    torchrun --nproc_per_node 8 benchmarks/scaling.py [--quick] [--json FILE]
    srun python benchmarks/scaling.py --recipe recipes/amazon_mlstm_4096.yaml batch.micro_batch=128
    deepspeed --num_gpus 8 benchmarks/scaling.py

Every device has one micro-batch, however many there are. Forward and backward in turns: `alone` on
the first device while the others wait, `apart` on all of them without the exchange of gradients,
`together` with it. Efficiency is the step of one device over that of N; exposed communication is
together less apart. Predicted: what `python -m pipeline plan` says for the bandwidth that an
all-reduce of as many bytes reaches in the same run. Ranks of one processor share its cores: on a
CPU all this is a check that it works, and no measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.device import seconds
from benchmarks.harness import Row, options, report, row
from pipeline.data.loader import Batch
from pipeline.environment import prepare_environment
from pipeline.models.build import parameter_count
from pipeline.plan.cost import Cost, Machine, cost_of
from pipeline.ranks import barrier, from_rank0, gather_objects, rank, world_size
from pipeline.recipe import Recipe, load_recipe

_ROOT = Path(__file__).parents[1]


def slowest(work: Callable[[], float]) -> float:
    """Seconds of the slowest rank, after all have begun together. Collective."""
    barrier()
    return max(gather_objects(work()))


def measure(recipe: Recipe, rounds: int) -> dict[str, float]:
    """Median seconds of each part of a step, and what a prediction needs. Collective.

    Without the exchange only at ZeRO 0, where it is a matter of its own; `update` is the optimizer.
    """
    from pipeline.train.loop import accumulate
    from pipeline.train.start import start_run

    run = start_run(recipe)
    engine, device = run.engine, run.engine.device

    def backward(batch: Batch, exchanged: bool) -> float:
        # DeepSpeed's own: ours leaves it to the last micro-batch, which is the only one here.
        sync = contextlib.nullcontext() if exchanged else engine._ds.no_sync()
        with sync:
            return seconds(device, lambda: accumulate(run, batch))

    found: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        batch = run.next_batch()
        times: dict[str, float] = {}
        if recipe.engine.zero_stage == 0:
            barrier()
            times["alone"] = from_rank0(lambda: backward(batch, False))  # noqa: B023  # at once
            engine.discard()
            times["apart"] = slowest(lambda: backward(batch, False))  # noqa: B023
            engine.discard()
        times["together"] = slowest(lambda: backward(batch, True))  # noqa: B023
        times["update"] = slowest(lambda: seconds(device, engine.step))
        if turn:  # the first warms up
            for name, value in times.items():
                found.setdefault(name, []).append(value)
    forward = run.module.backbone.flops(recipe.batch.window_tokens)
    width = 4 if run.dtype == "fp32" else 2
    run.close()
    return {name: statistics.median(values) for name, values in found.items()} | {
        "gradient_bytes": float(parameter_count(run.module) * width),
        "token_flops": 3 * (forward.total + run.module.head.dense_flops()),
        "on_cpu": float(device.type == "cpu"),
        "link": bandwidth(parameter_count(run.module) * width, device, rounds),
    }


def bandwidth(size: int, device: torch.device, rounds: int) -> float:
    """Bytes a second through each rank in an all-reduce of `size` bytes. Collective."""
    if world_size() == 1:
        return float("inf")
    buffer = torch.zeros(size, dtype=torch.uint8, device=device)
    times = [
        slowest(lambda: seconds(device, lambda: dist.all_reduce(buffer, dist.ReduceOp.MAX)))
        for _ in range(rounds + 1)
    ]
    moved = 2 * size * (world_size() - 1) / world_size()
    return moved / statistics.median(times[1:])


def predict(recipe: Recipe, found: dict[str, float], stage: int) -> Cost:
    """From the time of one device alone. What is waited for on one node is not known: nothing."""
    tokens = recipe.batch.tokens
    alone = found["alone"] + found["update"]
    nodes = world_size() // int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    machine = Machine(
        devices=world_size(), node_devices=1, link_gigabytes=found["link"] / 1e9,
        tokens_per_second=tokens / world_size() / alone,
        waiting=Machine().waiting if nodes > 1 else 0.0,
    )  # fmt: skip
    return cost_of(machine, 1, tokens, found["token_flops"], found["gradient_bytes"], stage)


def rows_of(recipe: Recipe, by_stage: dict[int, dict[str, float]]) -> list[Row]:
    """Measured beside predicted, for every ZeRO stage."""
    base, rows = by_stage[0], []
    one_s = base["alone"] + base["update"]
    check = ", a functional check" if base["on_cpu"] and world_size() > 1 else ""
    for stage, found in by_stage.items():
        case = f"scaling {world_size()} devices zero{stage}{check}"
        cost, step_s = predict(recipe, base, stage), found["together"] + found["update"]
        told = 1000 * cost.compute_s / cost.efficiency
        rows.append(row(case, "ms a step", 1000 * step_s, told, "predicted", True))
        rows.append(row(case, "weak-scaling efficiency", one_s / step_s, cost.efficiency,
                        "predicted"))  # fmt: skip
        if stage == 0:
            exposed = 1000 * (found["together"] - found["apart"])
            link = found["link"]
            wire = 1000 * cost.exchanged_bytes / link if link < float("inf") else 0.0
            rows.append(Row(case, "ms of exposed communication", exposed, wire, "predicted", None))
            rows.append(row(case, "ms a step, one alone", 1000 * one_s))
        rows.append(row(case, "MB sent by a device", cost.exchanged_bytes / 1e6))
    return rows


def main() -> None:
    """Measure every stage asked for; every rank calls this."""
    arguments = _parse()
    os.chdir(_ROOT)
    prepare_environment()
    from pipeline.stages.runner import run_prepare
    from pipeline.train.engine import init_distributed, shut_down

    init_distributed(10)
    with tempfile.TemporaryDirectory() as folder:
        asked = [*arguments.overrides, f"run.folder={folder}", "run.resume=never"]
        micro = load_recipe(arguments.recipe, asked).batch.micro_batch
        asked.append(f"batch.global_batch={micro * world_size()}")
        by_stage = {}
        for stage in sorted({0, *arguments.zero_stages}):
            name = f"run.name=scaling{stage}"
            recipe = load_recipe(arguments.recipe, [*asked, f"engine.zero_stage={stage}", name])
            from_rank0(lambda: run_prepare(recipe))  # noqa: B023  # at once
            by_stage[stage] = measure(recipe, 3 if arguments.quick else 15)
        rows = rows_of(recipe, by_stage)
        if rank() == 0:
            report(rows, arguments.json)
        shut_down()


def _parse() -> argparse.Namespace:
    parser = options(__doc__ or "")
    parser.add_argument("--recipe", default="recipes/demo_transformer.yaml")
    parser.add_argument("--zero-stages", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed's
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted recipe keys")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
