"""Run a function on N gloo ranks, each a process of its own, and give back what each returned.

A fork server that has imported torch and deepspeed once makes a two-rank test cost seconds. A rank
that raises fails the test with its traceback; ranks that outlive the limit are killed and named.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from queue import Empty
from time import monotonic
from typing import Any

# What they import when an engine is built: every rank would do that anew, in two seconds.
_IMPORTED = [
    "torch", "torch._dynamo", "torch.utils.tensorboard", "functorch.compile", "transformers",
    "deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.muon.original_muon", "pytest",
    "deepspeed.module_inject.auto_ep_config", "pipeline.train.start",
]  # fmt: skip


def rank_context() -> Any:
    """The multiprocessing context of ranks. There is one fork server a process, and data
    preparation may have started its own."""
    context = mp.get_context("forkserver")
    server = forkserver._forkserver  # type: ignore[attr-defined]
    if server._preload_modules != _IMPORTED:
        server._stop()
        context.set_forkserver_preload(_IMPORTED)
    return context


def run_ranks(
    world: int, function: Callable[..., Any], *args: Any, limit_s: float = 240
) -> list[Any]:
    """`function(rank, *args)` on every rank; the list of results by rank."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = rank_context()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(queue, rank, world, port, function, args))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    results: dict[int, Any] = {}
    deadline = monotonic() + limit_s
    try:
        while len(results) < world:
            try:
                rank, ok, value = queue.get(timeout=1)
            except Empty:
                dead = [r for r, p in enumerate(ranks) if not p.is_alive() and r not in results]
                assert not dead or not queue.empty(), f"rank {dead} died without a result"
                assert monotonic() < deadline, f"ranks hung; only {sorted(results)} finished"
                continue
            assert ok, f"rank {rank} failed:\n{value}"
            results[rank] = pickle.loads(value)
    finally:
        for process in ranks:
            process.join(timeout=10 if len(results) == world else 0.1)
            if process.is_alive():
                process.kill()
    return [results[rank] for rank in range(world)]


def _rank(
    queue: Any, rank: int, world: int, port: int, function: Callable[..., Any], args: Any
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    try:
        import torch

        torch.set_num_threads(1)
        # Bytes, not tensors: a tensor would travel as a handle that dies with this process.
        queue.put((rank, True, pickle.dumps(function(rank, *args))))
    except BaseException:
        queue.put((rank, False, traceback.format_exc()))
    queue.close()
    queue.join_thread()
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
