"""What heads take beside time: memory of a micro-batch, and bytes between two ranks in a step.

Every figure comes from processes of its own. Bytes are those that the loopback device carried, so
nothing else may use it meanwhile; they are shown beside what the algorithm should move.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.harness import Row, row
from pipeline.environment import free_port

_SPAWN = multiprocessing.get_context("spawn")


def zipf_ids(tokens: int, outputs: int, generator: torch.Generator) -> torch.Tensor:
    """Ids (tokens,) as words occur: the chance of an id falls as one over its number."""
    u = torch.rand(tokens, generator=generator, dtype=torch.float64)
    ids = (torch.exp(u * torch.log(torch.tensor(outputs + 1.0))) - 1).long()
    return ids.clamp(max=outputs - 1)


def memory_rows(outputs: int, width: int, tokens: int) -> Iterator[Row]:
    """Peak memory of forward and backward, the whole gradient of the matrix included, beyond what
    stood before; `chunked` is our own softmax, which never holds all logits."""
    peers = ("dense-ce", "chunked")
    with _SPAWN.Pool(1, maxtasksperchild=1) as pool:
        found = {
            name: pool.apply(_peak, (name, outputs, width, tokens)) for name in ("gram", *peers)
        }
    for peer in peers:
        case, unit = f"head gram memory D={outputs} d={width}", "MB above the matrix"
        yield row(case, f"{unit}, {tokens:,} tokens", found["gram"], found[peer], peer, True)


def _peak(name: str, outputs: int, width: int, tokens: int) -> float:
    from pipeline.heads.gram import GramHead
    from pipeline.heads.softmax import SoftmaxHead
    from pipeline.heads.spherical import build_loss

    weight = torch.randn(outputs, width).requires_grad_()
    hidden = torch.randn(1, tokens, width, requires_grad=True)
    targets = torch.randint(outputs, (1, tokens))
    head = SoftmaxHead(256) if name == "chunked" else GramHead(build_loss("taylor"), tokens)
    head.bind(weight)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = _peak_mb()
    if name != "dense-ce":
        head(hidden, targets, torch.ones(1, tokens))[0].backward()
        if isinstance(head, GramHead):
            weight.grad = head.sums.gradient(weight.detach())
    else:
        logits = torch.nn.functional.linear(hidden[0], weight)
        torch.nn.functional.cross_entropy(logits, targets[0], reduction="sum").backward()
    return _peak_mb() - before


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system tells no peak of memory")


def communication_rows(outputs: int, width: int, tokens: int) -> Iterator[Row]:
    """Bytes of one step over two gloo ranks: the sums of the Gram and the factored form, which are
    the same, and all that a step of shared rows moves, beside an all-reduce of the whole gradient.
    """
    port = free_port()
    with _SPAWN.Pool(2) as pool:
        arguments = [(rank, port, outputs, width, tokens) for rank in range(2)]
        found = pool.starmap(_exchange, arguments)[0]
    for name in ("gram", "sharded"):
        case = f"head {name} communication D={outputs} d={width}"
        yield row(case, f"MB a step of 2 x {tokens:,} tokens, counted", found[f"{name} counted"],
                  found["dense counted"], "all-reduce", True)  # fmt: skip
        yield row(case, f"MB a step of 2 x {tokens:,} tokens, on the wire", found[name],
                  found["dense"], "all-reduce", True)  # fmt: skip


def _exchange(rank: int, port: str, outputs: int, width: int, tokens: int) -> dict[str, float]:
    from pipeline.heads.rows import RowShares
    from pipeline.heads.sums import Examples, GradientSums

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    random = torch.Generator().manual_seed(rank)
    sums = GradientSums(width, torch.device("cpu"), torch.float32)
    ids = zipf_ids(tokens, outputs, random).unsqueeze(1)
    h = torch.randn(tokens, width, generator=random)
    ones = torch.ones(tokens)
    sums.add(Examples(h, ones, ones, torch.ones(tokens, 1), ids))
    distinct = len(sums.rows()[0])
    whole = torch.zeros(outputs, width)
    shares = RowShares(outputs)
    own = whole[shares.own]

    def sharded() -> None:
        dist.all_reduce(torch.zeros(width + 1, width))  # Q and W^T 1
        shares.fetch(ids, own)
        sums.reduce_products()
        shares.route(*sums.rows())

    a_row, remote = 4 * width + 8, int((sums.rows()[0] % 2 != rank).sum())
    found: dict[str, Any] = {
        "sharded": _wire(sharded),
        "gram": _wire(sums.reduce),
        "dense": _wire(lambda: dist.all_reduce(whole)),
        # Of two ranks each sends its part once and the result of its half once.
        "gram counted": (2 * 4 * width * (width + 1) + 2 * distinct * a_row) / 1e6,
        # What a rank asks for comes from the other, and its gradient goes there.
        "sharded counted": (4 * 4 * width * (width + 1) + _sum_of_ranks(2 * remote * a_row)) / 1e6,
        "dense counted": 2 * 4 * outputs * width / 1e6,
    }
    dist.destroy_process_group()
    return found


def _sum_of_ranks(value: float) -> float:
    total = torch.tensor(float(value), dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def _wire(work: Any) -> float:
    """MB that the loopback device carried while both ranks were at `work`."""
    dist.barrier()
    before = _loopback_bytes()
    work()
    dist.barrier()
    return (_loopback_bytes() - before) / 1e6


def _loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    return 0
