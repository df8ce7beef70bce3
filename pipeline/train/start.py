"""From a recipe to a finished run: `pretrain(recipe)`, called on every rank."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from data_prep.errors import DataError, Diverged, RecipeError, RolledBack, StoppedAndSaved
from data_prep.manifest import versions, write_atomic
from data_prep.plan import prepare_hash
from data_prep.secrets import redact
from data_prep.shards import Prepared
from pipeline.models.build import parameter_count
from pipeline.optim.build import (
    build_optimizer,
    check_small_states,
    noise_plugins,
    sam_plugins,
)
from pipeline.optim.registry import optimizer_class
from pipeline.protocols import Engine, StepPlugin
from pipeline.ranks import agree, barrier, from_rank0, rank, world_size
from pipeline.recipe import Recipe
from pipeline.recipe.deepspeed import derive_deepspeed, resolve_dtype, template_path
from pipeline.run_folder import RunFolder
from pipeline.sparsity.build import build_plugins
from pipeline.train import state
from pipeline.train.checkpoint import branch_off, resolve_resume
from pipeline.train.ddp_engine import DDPEngine
from pipeline.train.engine import (
    DeepSpeedEngine,
    check_config,
    check_machine,
    init_distributed,
    shut_down,
)
from pipeline.train.launcher import Launchers
from pipeline.train.lock import RunLock
from pipeline.train.loggers import check_loggers
from pipeline.train.loop import train
from pipeline.train.module import TrainModule, build_module
from pipeline.train.run import TrainingRun


def pretrain(recipe: Recipe) -> None:
    """Train the recipe to its end, resuming as it says. Collective: every rank calls this.

    RecipeError, DataError, Diverged, StoppedAndSaved, RolledBack or KeyboardInterrupt, as
    documented in `data_prep.errors`; the run's status.json is written last in every case.
    """
    launchers = Launchers()  # before anything that takes long enough for one to die
    init_distributed(recipe.engine.timeout_minutes)
    folder = RunFolder(recipe.run_folder)
    run: TrainingRun | None = None
    ending, reason = "crashed", ""
    with contextlib.ExitStack() as watched:
        try:
            run = start_run(recipe)
            watched.enter_context(run.watchdog.watching(launchers, run.stop, _status_writer(run)))
            train(run)
            ending = "finished"
        except BaseException as error:
            ending, reason = _ending_of(error), str(error)
            raise
        finally:
            # Before the run had a right to the folder, nothing may be written into it.
            if rank() == 0 and run is not None:
                folder.stop_file.unlink(missing_ok=True)
                _write_status(folder, run, ending, reason)
            if run is not None:
                run.close()
            if ending != "crashed":  # an ending that all ranks came to together
                shut_down()


def start_run(
    recipe: Recipe,
    plugins: Sequence[StepPlugin] | None = None,
    module: TrainModule | None = None,
) -> TrainingRun:
    """Build engine and run, restored where the recipe says so. Collective.

    `module` and `plugins` replace what the recipe would build: the seam that tests and methods use.
    """
    accumulation = recipe.accumulation(world_size())
    dtype = run_dtype(recipe)
    # Refused before any memory is taken; by all ranks, should one host lack something.
    config = agree(lambda: engine_config(recipe, world_size(), dtype))
    if config is not None:
        agree(lambda: check_machine(config))
    agree(lambda: check_loggers(recipe.run.loggers))
    prepared = open_prepared(recipe)
    lock = agree(lambda: RunLock(recipe.run_folder) if rank() == 0 else None)
    resume_from = from_rank0(
        lambda: resolve_resume(recipe.run.resume, RunFolder(recipe.run_folder).checkpoints)
    )
    if resume_from is not None:  # refused before any memory is taken and any file is written
        from_rank0(lambda: state.check_fits(resume_from, recipe, prepared, dtype, world_size()))
    module = module or agree(lambda: build_module(recipe, prepared))
    if plugins is None:
        plugins = [*build_plugins(recipe), *sam_plugins(recipe), *noise_plugins(recipe)]
    for plugin in plugins:
        plugin.setup(module)
    optimizer = agree(lambda: build_optimizer(recipe.optim, module))
    engine: Engine
    if config is None:
        clip = recipe.optim.gradient_clip_norm
        engine = DDPEngine(module, optimizer, recipe.engine, dtype, clip)
    else:
        engine = DeepSpeedEngine(module, optimizer, config)
    from_rank0(lambda: _describe(recipe, config, engine.device))
    run = TrainingRun(recipe, prepared, module, engine, list(plugins), dtype, resume_from, lock)
    _announce(run, accumulation, resume_from)
    if resume_from is not None and recipe.run.resume not in ("auto", "must"):
        # Not before everything has been found in order.
        aside = from_rank0(lambda: branch_off(resume_from, run.folder.checkpoints))
        if aside is not None:
            run.monitor.say(f"later checkpoints, of another branch, are kept in {aside}")
    return run


def open_prepared(recipe: Recipe) -> Prepared:
    """The prepared data on every rank; rank 0 alone verifies the hashes. Collective."""
    from_rank0(lambda: check_prepared(recipe))
    return agree(lambda: Prepared.open(recipe.data.folder, verify=False))


def check_prepared(recipe: Recipe) -> Prepared:
    """Open and verify the shards, and that they were made for this recipe's tokenizer."""
    prepared = Prepared.open(recipe.data.folder)
    if prepared.manifest["recipe_hash"] != prepare_hash(recipe.model_dump(mode="json")):
        found = prepared.manifest["tokenizer"]
        raise DataError(
            f"{recipe.data.folder} was prepared with other data or tokenizer settings than the "
            f"recipe's (found a {found['kind']} tokenizer of {found['vocab_size']} ids): run "
            "`python -m data_prep prepare RECIPE`, or name another data.folder"
        )
    prepared.tokenizer()
    return prepared


def run_dtype(recipe: Recipe) -> str:
    """fp32, bf16 or fp16: what `precision.dtype` means on this machine."""
    cuda_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return resolve_dtype(recipe, cuda_bf16=cuda_bf16)


def engine_config(recipe: Recipe, devices: int, dtype: str) -> dict[str, Any] | None:
    """The DeepSpeed JSON of `devices` devices, checked; None where DeepSpeed does not train.

    RecipeError for an optimizer that the engine cannot work with, and for a JSON that does not fit.
    """
    optimizer_class(recipe.optim.name, recipe.engine.zero_stage)
    check_small_states(recipe)
    if recipe.engine.kind == "ddp":
        return None
    config = derive_deepspeed(recipe, devices, dtype)
    check_config(config, template_path(recipe))
    return config


def _describe(recipe: Recipe, config: dict[str, Any] | None, device: torch.device) -> None:
    """Write what ran, with what, where, into the run folder."""
    folder = RunFolder(recipe.run_folder)
    folder.root.mkdir(parents=True, exist_ok=True)
    write_atomic(folder.config, recipe.to_yaml())
    if config is not None:
        write_atomic(folder.root / "ds_config.json", json.dumps(config, indent=2) + "\n")
    command = [os.path.relpath(sys.argv[0]), *sys.argv[1:]]
    write_atomic(folder.root / "command.txt", redact(" ".join(command)) + "\n")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    environment = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": gpu or "cpu",
        "cpu_count": len(_cpus()),
        "torch_threads": torch.get_num_threads(),
        "world_size": world_size(),
        "versions": versions(
            "torch", "deepspeed", "transformers", "tokenizers", "datasets", "accelerate", "numpy"
        ),
    }
    folder.write_json(folder.root / "env.json", environment)


def _cpus() -> Sequence[int]:
    return (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else range(os.cpu_count() or 1)
    )


def _announce(run: TrainingRun, accumulation: int, resume_from: Path | None) -> None:
    recipe, batch = run.recipe, run.recipe.batch
    run.monitor.say(
        f"{recipe.run.name}: {parameter_count(run.module) / 1e6:.2f} M parameters, {run.dtype}, "
        f"{recipe.engine.label}, {world_size()} x {run.engine.device.type}"
    )
    run.monitor.say(
        f"batch {batch.global_batch} = {world_size()} devices x {batch.micro_batch} micro-batch x "
        f"{accumulation} accumulation, {batch.window_tokens} tokens each"
    )
    if recipe.optim.scaling != "none":
        run.monitor.say(
            f"peak rate {recipe.optim.peak_lr(batch.tokens):.3g} for {batch.tokens:,} tokens, from "
            f"{recipe.optim.lr:.3g} for {recipe.optim.reference_tokens:,} by {recipe.optim.scaling}"
        )
    if resume_from is not None:
        run.monitor.say(
            f"resumed from {resume_from}: step {run.clock.applied}, instance "
            f"{run.clock.instances}, {run.meters.tokens} tokens"
        )
        for line in state.conversions(state.read_trainer(resume_from), run.layout):
            run.monitor.say(f"converted: {line}")
    barrier()


def _ending_of(error: BaseException) -> str:
    endings = {
        StoppedAndSaved: "stopped", KeyboardInterrupt: "stopped", RolledBack: "rolled back",
        Diverged: "diverged",
    }  # fmt: skip
    refused = isinstance(error, RecipeError | DataError)
    return endings.get(type(error), "refused" if refused else "crashed")


def _status_writer(run: TrainingRun) -> Callable[[str], None]:
    """What rank 0 does when it hangs: the process will not come to the end of `pretrain`."""

    def write(reason: str) -> None:
        if rank() == 0:
            _write_status(run.folder, run, "crashed", reason)

    return write


def _write_status(folder: RunFolder, run: TrainingRun, ending: str, reason: str) -> None:
    folder.write_json(
        folder.status,
        {
            "state": ending,
            "step": run.clock.applied,
            "reason": redact(reason),
            "clock": run.clock.to_dict(),
            "parameters": parameter_count(run.module),
            "tokens": run.meters.tokens,
            "train_s": run.meters.train_s,
            "dtype": run.dtype,
            "world_size": world_size(),
        },
    )
