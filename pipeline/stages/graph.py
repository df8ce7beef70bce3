"""The stages of a run as data: what each reads, which recipe sections it obeys, what it calls.

A stage is done when its manifest stands, its inputs are unchanged and its sections of the recipe
hash the same; everything else follows from that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.manifest import recipe_hash
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder, StageOutput


@dataclass(frozen=True)
class Stage:
    """One stage. `inputs` are the files whose change makes it run again."""

    name: str
    sections: tuple[str, ...]
    inputs: Callable[[Recipe], list[Path]]
    work: Callable[[Recipe], StageOutput]
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    check: Callable[[Recipe], None] = lambda recipe: None  # before anything is moved or started

    def manifest(self, recipe: Recipe) -> Path:
        return RunFolder(recipe.run_folder).stages / f"{self.name}.json"

    def hash(self, recipe: Recipe) -> str:
        return recipe_hash({name: _relevant(recipe, name) for name in self.sections})


# Keys of `run` that do not change what is trained.
_NO_RESULT = (
    "resume", "stop_after_minutes", "log_every_steps", "loggers", "processes", "max_restarts",
)  # fmt: skip


def _relevant(recipe: Recipe, section: str) -> Any:
    """A section's values, less those that change how a run goes but not what comes out."""
    value = getattr(recipe, section)
    plain = value.model_dump(mode="json") if value is not None else None
    if section == "run" and plain is not None:
        for key in _NO_RESULT:
            plain.pop(key)
    return plain


def _prepared(recipe: Recipe) -> list[Path]:
    return [Path(recipe.data.folder) / "manifest.json"]


def _stage(name: str) -> Callable[[Recipe], list[Path]]:
    return lambda recipe: [RunFolder(recipe.run_folder).stages / f"{name}.json"]


def _evaluate_inputs(recipe: Recipe) -> list[Path]:
    files = _stage("export")(recipe) + _prepared(recipe)
    return files + list(dict.fromkeys(recipe.evaluation_files().values()))


def _finetune_inputs(recipe: Recipe) -> list[Path]:
    section = recipe.finetune
    assert section is not None
    model = [Path(section.model) / "config.json"] if section.model else _stage("export")(recipe)
    return model + [file for path in section.data_files.values() for file in _files_in(path)]


def _files_in(path: Path) -> list[Path]:
    """The path itself, or the files of a folder."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _report_inputs(recipe: Recipe) -> list[Path]:
    before = ("pretrain", "export", "evaluate", "finetune")
    manifests = [path for name in before for path in _stage(name)(recipe)]
    audit = RunFolder(recipe.run_folder).evals / "audit.json"  # made by a command of its own
    return [path for path in [*manifests, audit] if path.is_file()]


# The work of each stage is imported when it runs: asking for the status must not import torch.


def _preflight(recipe: Recipe) -> None:
    from pipeline.preflight import quick

    quick(recipe)


def _pretrain(recipe: Recipe) -> StageOutput:
    from pipeline.stages.launch import launch_pretrain

    return launch_pretrain(recipe)


def _export(recipe: Recipe) -> StageOutput:
    from pipeline.export.hf import export_model

    return export_model(recipe)


def _evaluate(recipe: Recipe) -> StageOutput:
    from pipeline.evaluate.stage import evaluate_model

    return evaluate_model(recipe)


def _finetune(recipe: Recipe) -> StageOutput:
    from pipeline.finetune.stage import finetune_model

    return finetune_model(recipe)


def _report(recipe: Recipe) -> StageOutput:
    from pipeline.report.stage import write_report

    return write_report(recipe)


STAGES = (
    Stage(
        "pretrain",
        ("run", "model", "head", "sparsity", "batch", "optim", "precision", "engine"),
        _prepared,
        _pretrain,
        check=_preflight,
    ),
    Stage("export", ("export",), _stage("pretrain"), _export),
    Stage(
        "finetune", ("finetune",), _finetune_inputs, _finetune,
        wanted=lambda recipe: recipe.finetune is not None,
    ),
    Stage("evaluate", ("eval",), _evaluate_inputs, _evaluate),
    Stage("report", ("report",), _report_inputs, _report),
)  # fmt: skip


def stage_called(name: str) -> Stage:
    return next(stage for stage in STAGES if stage.name == name)
