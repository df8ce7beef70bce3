"""Starting the training processes of a run and reading how they ended."""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.errors import DataError, Diverged, PipelineError, RecipeError, StoppedAndSaved
from data_prep.manifest import write_atomic
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder, StageOutput
from pipeline.stages.supervise import Supervisor
from pipeline.train.checkpoint import list_checkpoints

_ERRORS: dict[int, type[PipelineError]] = {
    error.exit_code: error for error in (RecipeError, DataError, Diverged, StoppedAndSaved)
}


def launch_pretrain(recipe: Recipe) -> StageOutput:
    """Train in processes of their own (`run.processes`), restarted when they crash.

    Raises the error that belongs to the exit code.
    """
    folder = RunFolder(recipe.run_folder)
    folder.root.mkdir(parents=True, exist_ok=True)
    resolved = folder.root / "recipe.yaml"
    command = _command(resolved, recipe.run.processes)
    # To a run that has been started again, `never` would be a refusal.
    once_saved = ["run.resume=auto"] if recipe.run.resume == "never" else []
    supervisor = Supervisor(command, folder, recipe.run.max_restarts, once_saved)
    supervisor.refuse_company()  # whose restarts read that file
    write_atomic(resolved, recipe.to_yaml())
    try:
        code = supervisor.run()
    finally:
        if not folder.config.exists():  # it never began: nothing stands in the way of a result
            resolved.unlink()
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        error = _ERRORS.get(code, PipelineError)
        raise error(f"training ended with exit code {code}, see its message above")
    status = folder.read_json(folder.status) or {}
    if status.get("state") != "finished":
        raise PipelineError(
            f"training ended as {status.get('state', 'one that wrote nothing')!r}, expected "
            "'finished': run the same command to go on"
        )
    checkpoint = list_checkpoints(folder.checkpoints)[0]
    root = folder.root
    return StageOutput(
        outputs=[checkpoint / "manifest.json", folder.metrics],
        counts={
            "parameters": status["parameters"],
            "tokens": status["tokens"],
            "steps": status["step"],
            "train_s": status["train_s"],
            "checkpoint": checkpoint.name,
        },
        belongs=[
            folder.checkpoints, folder.metrics, folder.status, folder.config, resolved,
            folder.skip_instances, folder.logs, root / "ds_config.json", root / "env.json",
            root / "command.txt", root / "tb",
            root / "metrics.csv", root / "wandb",
        ],
    )  # fmt: skip


def _command(recipe: Path, processes: int | None) -> list[str]:
    import torch

    script = str(Path(__file__).resolve().parents[2] / "run_pretrain.py")
    processes = processes or max(1, torch.cuda.device_count())
    if processes > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return [*torchrun, f"--nproc_per_node={processes}", script, str(recipe)]
    return [sys.executable, script, str(recipe)]
