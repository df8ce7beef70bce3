"""Do all ranks meet, and can they add numbers up? A table of who came, and who did not.

The ranks find each other in a store by its address alone, before any collective: a collective would
wait for the missing ones without saying who they are.
"""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from data_prep.errors import RecipeError
from data_prep.manifest import versions

LIMIT_S = 120.0
_COMPARED = ("torch", "deepspeed", "transformers")


def meet(limit_s: float = LIMIT_S) -> str:
    """The table of ranks, the same on each. Every rank of the launcher calls this.

    RecipeError on every rank that came when some are not there within `limit_s` seconds, when
    their versions differ, or when they cannot exchange a tensor.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world_size == 1:
        raise RecipeError("--dist with one process: start it under deepspeed, torchrun or srun")
    deadline = time.monotonic() + limit_s
    store = _store(rank, world_size, limit_s)
    store.set(f"rank{rank}", json.dumps(_myself()))
    if rank == 0:
        store.set("verdict", json.dumps(_gather(store, world_size, deadline)))
    try:  # longer than rank 0 waits, which then tells
        store.wait(["verdict"], timedelta(seconds=limit_s + 15))
    except (RuntimeError, dist.DistError) as error:
        raise RecipeError(f"rank {rank} has lost rank 0 ({_first_line(error)})") from None
    verdict = json.loads(store.get("verdict"))
    table = _table(verdict["ranks"])
    if problem := verdict["problem"]:
        _wait_for_readers(store, rank, len(verdict["ranks"]))
        raise RecipeError(f"{problem}\n{table}")
    took_s = _exchange(store, rank, world_size, limit_s)
    return f"{world_size} ranks met, an exchange of 1 MiB took {1000 * took_s:.0f} ms\n{table}"


def _store(rank: int, world_size: int, limit_s: float) -> Any:
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    address = f"{host}:{port}"
    # torchrun has opened the store itself, before any rank was started.
    opens = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = dist.TCPStore(
            host, int(port), is_master=opens, wait_for_workers=False,
            timeout=timedelta(seconds=limit_s),
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError, dist.DistError) as error:
        raise RecipeError(
            f"rank {rank} on {socket.gethostname()} of {world_size}: rank 0 does not answer at "
            f"{address} within {limit_s:g} s ({_first_line(error)}): see that it was started, and "
            "that address and port are open between the hosts"
        ) from None
    return dist.PrefixStore("preflight", store)


def _myself() -> dict[str, Any]:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpu = torch.cuda.is_available()
    device = f"cuda:{local} {torch.cuda.get_device_name(local)}" if gpu else "cpu"
    return {"host": socket.gethostname(), "device": device, "versions": versions(*_COMPARED)}


def _gather(store: Any, world_size: int, deadline: float) -> dict[str, Any]:
    """What rank 0 has found: everybody who came, and what is wrong."""
    missing = list(range(world_size))
    while missing and time.monotonic() < deadline:
        missing = [rank for rank in missing if not store.check([f"rank{rank}"])]
        time.sleep(0.05 if missing else 0.0)
    ranks = {
        rank: json.loads(store.get(f"rank{rank}"))
        for rank in range(world_size)
        if rank not in missing
    }
    problem = ""
    if missing:
        names = ", ".join(map(str, missing))
        problem = (
            f"rank {names} of {world_size} did not come: see that the process was started there "
            f"and reaches {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        )
    elif len({json.dumps(found["versions"]) for found in ranks.values()}) > 1:
        problem = "the ranks have different versions: install the same requirements on every host"
    return {"ranks": ranks, "problem": problem}


def _wait_for_readers(store: Any, rank: int, readers: int) -> None:
    """Rank 0 keeps the store, and stays a little until the others have read."""
    store.add("read", 1)
    deadline = time.monotonic() + (5.0 if rank == 0 else 0.0)
    while time.monotonic() < deadline and store.add("read", 0) < readers:
        time.sleep(0.05)


def _table(ranks: dict[str, dict[str, Any]]) -> str:
    lines = [f"  {'rank':>4}  {'host':<24}{'device':<28}torch"]
    for rank, found in sorted(ranks.items(), key=lambda item: int(item[0])):
        torch_version = found["versions"]["torch"]
        lines.append(f"  {rank:>4}  {found['host']:<24}{found['device']:<28}{torch_version}")
    return "\n".join(lines)


def _exchange(store: Any, rank: int, world_size: int, limit_s: float) -> float:
    """Seconds of an all-reduce of 1 MiB, by the way that training takes. Collective."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    tensor = torch.full((2**18,), float(rank), device="cuda" if gpu else "cpu")
    try:
        dist.init_process_group(
            "nccl" if gpu else "gloo", store=dist.PrefixStore("exchange", store), rank=rank,
            world_size=world_size, timeout=timedelta(seconds=limit_s),
        )  # fmt: skip
        dist.barrier()
        began = time.monotonic()
        dist.all_reduce(tensor)
        total = float(tensor[0])
        took_s = time.monotonic() - began
        dist.barrier()
        dist.destroy_process_group()
    except (RuntimeError, dist.DistError) as error:
        raise RecipeError(
            f"rank {rank} on {socket.gethostname()} met the others but cannot exchange tensors "
            f"({_first_line(error)}): see that all ports are open between the hosts, and set "
            "NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME to the interface that joins them"
        ) from None
    if total != world_size * (world_size - 1) / 2:
        raise RecipeError(f"rank {rank} got {total} of an all-reduce, the sum is another")
    return took_s


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0]:.200}" if lines else type(error).__name__
