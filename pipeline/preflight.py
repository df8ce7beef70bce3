"""Checks before any memory is taken: tick or cross with the reason, exit code 2 on a cross.

`dry_run` validates a recipe without its data being there; `preflight` also looks at the machine and
at the prepared shards.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from data_prep.errors import DataError, PipelineError, RecipeError
from data_prep.manifest import versions
from pipeline.models.build import parameter_count
from pipeline.plan.memory import memory_of, meta_module
from pipeline.recipe import Recipe
from pipeline.recipe.deepspeed import template_path
from pipeline.recipe.sparsity import MixedConfig
from pipeline.sparsity.design import Design, design
from pipeline.train.checkpoint import resolve_resume
from pipeline.train.engine import check_machine
from pipeline.train.module import TrainModule
from pipeline.train.start import check_prepared, engine_config, run_dtype

_GIB = 2**30


def dry_run(recipe: Recipe) -> None:
    """Validate recipe and DeepSpeed JSON and build the model on the meta device."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    dtype = run_dtype(recipe)
    config = engine_config(recipe, world_size, dtype)
    module = meta_module(recipe)
    batch = recipe.batch
    print(f"recipe           {recipe.run.name}: valid")
    made_from = "no DeepSpeed" if config is None else f"{template_path(recipe)}: valid"
    print(f"engine           {made_from}, {recipe.engine.label}, {dtype}")
    print(
        f"batch            {batch.global_batch} = {world_size} devices x {batch.micro_batch} "
        f"micro-batch x {recipe.accumulation(world_size)} accumulation, "
        f"{batch.window_tokens} tokens each"
    )
    print(f"model            {parameter_count(module) / 1e6:.2f} M parameters (meta device)")
    forward = module.backbone.flops(batch.window_tokens)
    flops = 3 * (forward.total + module.head.dense_flops())
    tokens = recipe.run.steps * batch.tokens
    print(f"training         {tokens / 1e6:.1f} M tokens, {flops * tokens:.3g} FLOPs")
    if isinstance(recipe.sparsity, MixedConfig):
        print(f"sparsity         {_design(recipe, module).summary()}")
    for name, size in memory_of(recipe, module, world_size, dtype).items():
        print(f"memory           {name:<12} {size / _GIB:8.3f} GiB per device")


def _design(recipe: Recipe, module: TrainModule) -> Design:
    assert isinstance(recipe.sparsity, MixedConfig)
    return design(recipe.sparsity, module.backbone, module.head, recipe.batch.window_tokens)


def preflight(recipe: Recipe) -> None:
    """Run every check, print ticks and crosses. RecipeError or DataError when one fails."""
    checks: dict[str, Callable[[], str]] = {
        "versions": _versions,
        "recipe and DeepSpeed JSON": lambda: _recipe(recipe),
        "prepared data": lambda: _data(recipe),
        "run folder": lambda: _run_folder(recipe),
        "disk": lambda: _disk(recipe),
        "extension locks": _locks,
    }
    failures: list[PipelineError] = []
    for name, check in checks.items():
        try:
            print(f"✓ {name}: {check()}")
        except PipelineError as error:
            print(f"✗ {name}: {error}", file=sys.stderr)
            failures.append(error)
    if failures:
        kind = DataError if all(isinstance(f, DataError) for f in failures) else RecipeError
        raise kind(f"preflight found {len(failures)} problem(s), see above")


def _versions() -> str:
    found = versions("torch", "deepspeed", "transformers", "tokenizers", "accelerate")
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _recipe(recipe: Recipe) -> str:
    config = engine_config(recipe, 1, run_dtype(recipe))
    if config is not None:
        check_machine(config)
    module = meta_module(recipe)
    if isinstance(recipe.sparsity, MixedConfig):
        _design(recipe, module)
    return f"{parameter_count(module) / 1e6:.2f} M parameters"


def _data(recipe: Recipe) -> str:
    prepared = check_prepared(recipe)
    splits = prepared.manifest["splits"]
    return ", ".join(f"{name} {entry['tokens']} tokens" for name, entry in splits.items())


def _run_folder(recipe: Recipe) -> str:
    recipe.run_folder.mkdir(parents=True, exist_ok=True)
    probe = recipe.run_folder / ".write-test"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise RecipeError(f"{recipe.run_folder} cannot be written: {error.strerror}") from None
    found = resolve_resume(recipe.run.resume, recipe.run_folder / "checkpoints")
    return f"{recipe.run_folder}, " + (
        f"will resume from {found.name}" if found else "starts fresh"
    )


def _disk(recipe: Recipe) -> str:
    # Two checkpoints of weights and Adam state.
    need = 2 * 16 * parameter_count(meta_module(recipe))
    free = shutil.disk_usage(recipe.run_folder if recipe.run_folder.exists() else ".").free
    if free < need:
        raise RecipeError(
            f"{free / _GIB:.1f} GiB free where the run folder lies, two checkpoints need "
            f"{need / _GIB:.1f} GiB: free some space or set run.folder"
        )
    return f"{free / _GIB:.1f} GiB free, {need / _GIB:.2f} GiB needed for two checkpoints"


def _locks() -> str:
    """A build that was killed leaves a lock that makes every later start wait for ever."""
    cache = Path(os.environ.get("TORCH_EXTENSIONS_DIR", "/nonexistent"))
    for lock in cache.glob("*/lock") if cache.is_dir() else []:
        age_s = time.time() - lock.stat().st_mtime
        if age_s > 600:
            raise RecipeError(
                f"{lock} is {age_s / 60:.0f} minutes old, from a build that was killed: delete it"
            )
    return "none stale"
