"""Replicas that drift apart: do all ranks still hold the same weights?

Data-parallel training never compares them, so a bit that flips in one rank's memory is trained on
for weeks (Le Scao et al. 2022, BLOOM: layer norms that differed between ranks).
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from data_prep.errors import Diverged
from pipeline.ranks import gather_objects, rank, world_size
from pipeline.train.evidence import write_evidence
from pipeline.train.run import TrainingRun

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_replicas(run: TrainingRun) -> None:
    """Diverged with the first tensor that differs between ranks, and whose it is. Collective."""
    tensors = dict(replicated(run))
    if world_size() == 1 or not tensors:
        return
    sums = bit_sums(tensors.values(), run.engine.device)
    differing = first_difference(sums)
    if differing is None:
        return
    held = gather_objects((rank(), platform.node(), int(sums[differing])))
    name = list(tensors)[differing]
    usual, holders = Counter(bits for _, _, bits in held).most_common(1)[0]
    odd = [f"rank {number} ({host})" for number, host, bits in held if bits != usual]
    if 2 * holders > len(held):
        who = f"{', '.join(odd)} holds other bits than the other ranks"
    else:  # nobody can say who is right
        who = f"rank {held[0][0]} ({held[0][1]}) and {', '.join(odd)} hold different bits"
    reason = f"replicas have drifted apart: {who} of {name}"
    path = write_evidence(run, reason, tensor=name)
    raise Diverged(
        f"{reason} at step {run.clock.applied}: suspect the memory of that host, take it out and "
        f"go on from a checkpoint before ({path})"
    )


def replicated(run: TrainingRun) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that all ranks hold in full, by name; at ZeRO 3 only those of the head, and
    nothing of the model where local SGD gives each rank weights of its own."""
    engine = run.recipe.engine
    if engine.zero_stage < 3 and engine.comm_hook != "post_local_sgd":
        yield from run.engine.named_parameters()
    for name, tensor in run.module.head.owned_parameters().items():
        yield f"head.{name}", tensor


def bit_sums(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """(n,) int64 on `device`: the bits of each tensor, wherever it lies, read as integers and
    added. One changed element always changes its sum."""
    bits = (t.detach().view(_INTEGERS[t.element_size()]) for t in tensors)
    return torch.stack([b.sum(dtype=torch.int64).to(device) for b in bits])


def first_difference(sums: Tensor) -> int | None:
    """The first place where ranks differ, None where they agree. One all-reduce. Collective."""
    # The largest of ~x is ~ of the smallest x: both ends in one exchange.
    ends = torch.cat([sums, ~sums])
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    largest, smallest = ends[: len(sums)], ~ends[len(sums) :]
    places = torch.nonzero(largest != smallest)
    return int(places[0]) if len(places) else None
