"""ZeRO 3 with the optimizer on an NVMe disk: what lies there, brought to memory when it is saved.

DeepSpeed keeps the masters and moments of each group of parameters in files and reads them for the
step alone. Groups under 1 MiB stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepspeed.ops.op_builder import AsyncIOBuilder
from torch import Tensor

from data_prep.errors import RecipeError


def check_keys(zero: dict[str, Any], where: Path) -> None:
    """RecipeError where the template `where` asks for what cannot lie on a disk."""
    if (zero.get("offload_param") or {}).get("device") == "nvme":
        raise RecipeError(
            f"{where}: zero_optimization.offload_param.device=nvme: DeepSpeed puts there only "
            "weights that were never whole in memory, and ours are when they are made: use cpu"
        )
    if (offload := _offload(zero)) is None:
        return
    if zero["stage"] != 3:
        raise RecipeError(
            f"{where}: zero_optimization.offload_optimizer.device=nvme works at ZeRO 3 alone, "
            f"found engine.zero_stage={zero['stage']}: use cpu, or engine.zero_stage=3"
        )
    if not offload.get("nvme_path"):
        raise RecipeError(
            f"{where}: zero_optimization.offload_optimizer.nvme_path is missing: name a folder on "
            "the NVMe disk"
        )


def check_disk(zero: dict[str, Any]) -> None:
    """RecipeError where this machine has no such disk, or no way to it."""
    if (offload := _offload(zero)) is None:
        return
    disk = Path(offload["nvme_path"]).parent  # in it, a folder of each run
    if not disk.is_dir():
        raise RecipeError(
            f"zero_optimization.offload_optimizer.nvme_path={disk} is no folder: name one on the "
            "NVMe disk"
        )
    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise RecipeError(
            "zero_optimization.offload_optimizer.device=nvme reads and writes through libaio, "
            "which was not found: `apt install libaio-dev`, or use device=cpu"
        )


def _offload(zero: dict[str, Any]) -> dict[str, Any] | None:
    offload: dict[str, Any] = zero.get("offload_optimizer") or {}
    return offload if offload.get("device") == "nvme" else None


def groups(optimizer: Any) -> list[int]:
    """Numbers of the groups of DeepSpeed's optimizer that lie on the disk."""
    if not getattr(optimizer, "swap_optimizer", False):
        return []
    numbers = range(len(optimizer.fp32_partitioned_groups_flat))
    return [number for number in numbers if optimizer._swappable_optimizer_subgroup(number)]


@contextmanager
def in_memory(optimizer: Any, number: int, write: bool) -> Iterator[None]:
    """The masters and moments of a group are there in the body; `write` saves what it did. Nothing
    to do for one that does not lie on the disk."""
    if number not in groups(optimizer):
        yield
        return
    optimizer._optimizer_states_and_gradient_swap_in(number)
    yield
    if write:
        optimizer._writeback_swap_state(number, write_opt_state=True, write_gradients=False)
    else:
        optimizer._release_swap_buffers(number)


def align_gradients(optimizer: Any) -> None:
    """Let gradients come back from the disk to where they belong.

    0.19.8 reads each straight into its place in the group, an address that direct I/O does not take
    unless it is a multiple of the block size: what was there before stays, in silence. It cuts ends
    that do not fill a block and keeps them in memory; beginnings must be cut as well.
    """
    if not groups(optimizer):
        return
    swapper = optimizer.optimizer_swapper

    def cut(tensors: list[Tensor], offsets: list[int]) -> tuple[list[Tensor], list[int]]:
        parts, starts = [], []
        for tensor, offset in zip(tensors, offsets, strict=True):
            for first, last in _blocks(offset, tensor.numel(), swapper.numel_alignment):
                parts.append(tensor.narrow(0, first, last - first))
                starts.append(offset + first)
        return parts, starts

    swapper._adjust_for_misaligned_lengths = cut


def _blocks(offset: int, size: int, block: int) -> Iterator[tuple[int, int]]:
    """Head, whole blocks and tail of `size` values that begin `offset` values after an edge."""
    head = min(-offset % block, size)
    tail = size - (size - head) % block
    for first, last in ((0, head), (head, tail), (tail, size)):
        if last > first:
            yield first, last
