"""What the machine must have: versions, compilers, devices, what the engine asks of them, and no
lock of a killed build."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from pathlib import Path

import torch
from packaging.requirements import Requirement

from data_prep.errors import RecipeError
from pipeline.recipe import Recipe
from pipeline.recipe.deepspeed import offloaded
from pipeline.train.engine import check_machine
from pipeline.train.start import engine_config, run_dtype

_REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
_SHOWN = ("torch", "deepspeed", "transformers")
_STALE_S = 600  # no build of ours takes as long


def versions() -> str:
    """Every library against its range in requirements.txt, which the tests run against."""
    wrong, found = [], {}
    for line in _REQUIREMENTS.read_text("utf-8").splitlines():
        wanted = line.partition("#")[0].strip()
        if not wanted:
            continue
        requirement = Requirement(wanted)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            version = found[requirement.name] = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing, expected {requirement.specifier}")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version}, expected {requirement.specifier}")
    if wrong:
        raise RecipeError("; ".join(wrong) + ": run `pip install -r requirements.txt`")
    shown = ", ".join(f"{name} {found[name]}" for name in _SHOWN)
    return f"python {platform.python_version()}, {shown}"


def compilers(recipe: Recipe) -> str:
    """A C++ compiler where something will be compiled; nothing is asked for elsewhere."""
    reasons = {
        "engine.compile": recipe.engine.compile,
        "offloading builds DeepSpeed's processor optimizer": "optimizer" in offloaded(recipe),
        "GPU kernels are built by Triton": torch.cuda.is_available(),
    }
    needed = [reason for reason, holds in reasons.items() if holds]
    if not needed:
        return "none needed"
    names = [os.environ.get("CXX"), os.environ.get("CC"), "c++", "g++", "clang++", "cc", "gcc"]
    compiler = next((path for name in names if name and (path := shutil.which(name))), None)
    if compiler is None:
        raise RecipeError(f"no C++ compiler was found, but {needed[0]}: install g++, or set CXX")
    return f"{compiler} ({needed[0]})"


def devices() -> str:
    """GPUs and their way to talk to each other; a machine without any trains on its processor."""
    count = torch.cuda.device_count()
    if not torch.cuda.is_available() or not count:
        return f"no GPU, {os.cpu_count()} processors: trains with gloo"
    if not torch.distributed.is_nccl_available():
        raise RecipeError(f"{count} GPUs, but this torch has no NCCL: install a CUDA build of it")
    names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return f"{count} x {', '.join(names)}, NCCL {nccl}"


def engine(recipe: Recipe, world_size: int) -> str:
    """What the engine is told to do, on so many devices like those of this machine."""
    dtype = run_dtype(recipe)
    config = engine_config(recipe, world_size, dtype)
    if config is not None:
        check_machine(config)
    return f"{recipe.engine.label}, {dtype}"


def locks() -> str:
    """A build that was killed leaves a lock that makes every later start wait for ever."""
    cache = Path(os.environ.get("TORCH_EXTENSIONS_DIR", "/nonexistent"))
    for lock in cache.glob("**/lock") if cache.is_dir() else []:
        age_s = time.time() - lock.stat().st_mtime
        if age_s > _STALE_S:
            raise RecipeError(
                f"{lock} is {age_s / 60:.0f} minutes old, from a build that was killed: delete it"
            )
    return "none stale"
