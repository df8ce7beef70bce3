"""Room for the run: a folder that can be written, disk for checkpoints, memory for training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil
import torch

from data_prep.errors import RecipeError
from pipeline.models.build import parameter_count
from pipeline.plan.memory import GIB, memory_of
from pipeline.recipe import Recipe
from pipeline.train.checkpoint import resolve_resume
from pipeline.train.module import TrainModule
from pipeline.train.start import run_dtype


def writable(recipe: Recipe) -> str:
    """Writes and removes a file where the run will write."""
    probe = recipe.run_folder / f".write-test-{os.getpid()}"
    try:
        recipe.run_folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise RecipeError(
            f"{recipe.run_folder} cannot be written ({error.strerror}): free it or set run.folder"
        ) from None
    return str(recipe.run_folder)


def beginning(recipe: Recipe) -> str:
    """Where the run will begin; a checkpoint is hashed for this."""
    found = resolve_resume(recipe.run.resume, recipe.run_folder / "checkpoints")
    return f"will resume from {found.name}" if found else "starts fresh"


def disk(recipe: Recipe, module: TrainModule) -> str:
    """Two checkpoints of weights and both moments in fp32 beside the rounded weights."""
    need = 2 * 16 * parameter_count(module)
    free = shutil.disk_usage(_existing(recipe.run_folder)).free
    if free < need:
        raise RecipeError(
            f"{free / GIB:.1f} GiB free where the run folder lies, two checkpoints need "
            f"{need / GIB:.1f} GiB: free some space or set run.folder"
        )
    return f"{free / GIB:.1f} GiB free, {need / GIB:.2f} GiB needed for two checkpoints"


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.resolve().parents) if place.exists())


def memory(recipe: Recipe, module: TrainModule, devices: int) -> str:
    """The estimate of `plan` against what a device of this machine has free, and the machine for
    what is offloaded to it."""
    found = memory_of(recipe, module, devices, run_dtype(recipe))
    need, offloaded = sum(found.device.values()), sum(found.host.values())
    free, what = free_memory()
    if not torch.cuda.is_available():  # there the device is the host
        need, offloaded = need + offloaded, 0.0
    told = f"{need / GIB:.2f} GiB estimated a device, {free / GIB:.1f} GiB free ({what})"
    if need > free:
        raise RecipeError(
            f"{told}: lower batch.micro_batch, raise engine.zero_stage with more devices, or set "
            "engine.activation_checkpointing"
        )
    return f"{told}; {_host_memory(offloaded)}" if offloaded else told


def _host_memory(a_device: float) -> str:
    here = torch.cuda.device_count()
    need, free = here * a_device, _free_ram()
    told = f"{need / GIB:.2f} GiB offloaded by {here} device(s), {free / GIB:.1f} GiB free (RAM)"
    if need > free:
        raise RecipeError(f"{told}: share it among more hosts, or offload to NVMe")
    return told


def free_memory() -> tuple[float, str]:
    """Bytes that one device has free, and what it is."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0]), torch.cuda.get_device_name()
    return _free_ram(), "RAM"


def _free_ram() -> float:
    free = float(psutil.virtual_memory().available)
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():  # a container's share
        free = min(free, float(text) - float(used.read_text()))
    return free
