"""Running stages: skip what is current, move aside what is superseded, write manifests last."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import yaml

from data_prep.errors import PipelineError, RecipeError
from data_prep.manifest import (
    FileRecord,
    free_path,
    read_manifest,
    stage_is_current,
    stage_manifest,
    versions,
    write_atomic,
    write_manifest,
)
from data_prep.plan import prepare_status
from data_prep.prepare import prepare_tree
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder, StageOutput
from pipeline.stages.graph import STAGES, Stage

T = TypeVar("T")

ALL = ("prepare", *(stage.name for stage in STAGES))


def run_stages(recipe: Recipe, names: Sequence[str], *, verify: bool = False) -> None:
    """Bring the named stages up to date, in the order of the graph."""
    if {"pretrain", "evaluate"} <= {*names}:  # hours of training lie between
        recipe.check_evaluation_files()
    if "prepare" in names:
        run_prepare(recipe)
    for stage in STAGES:
        if stage.name in names and stage.wanted(recipe):
            run_stage(stage, recipe, verify=verify)
        elif [stage.name] == list(names):
            raise RecipeError(f"the recipe has no {stage.name}: section, which says what to do")


def run_prepare(recipe: Recipe) -> None:
    tree = recipe.model_dump(mode="json")
    if prepare_status(tree) is None:
        print(f"prepare   up to date: {recipe.data.folder}")
    else:
        prepare_tree(tree)


def run_stage(stage: Stage, recipe: Recipe, *, verify: bool = False) -> None:
    """One stage, unless it is current. Its old outputs are moved aside, never overwritten.

    A launcher may have started several processes for the work: what is around it one of them does.
    """
    must_run, aside = _once(lambda: _begin(stage, recipe, verify))
    if not must_run:
        return
    inputs = [FileRecord.of(path) for path in stage.inputs(recipe)]
    began = perf_counter()
    try:
        output = stage.work(recipe)
    except (PipelineError, KeyboardInterrupt):
        if aside is not None and os.environ.get("RANK", "0") == "0":
            if not put_back(aside, stage.manifest(recipe)):
                print(f"{stage.name:<9} what stood before is kept in {aside}")
        raise
    _once(lambda: _end(stage, recipe, inputs, output, perf_counter() - began))


def _once(work: Callable[[], T]) -> T:
    """The result of `work` on every process of a launcher, done by the first. Collective."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return work()
    from pipeline.finetune.processes import start_accelerator
    from pipeline.ranks import from_rank0

    start_accelerator()
    return from_rank0(work)


def _begin(stage: Stage, recipe: Recipe, verify: bool) -> tuple[bool, Path | None]:
    """Whether the stage must run; then its way is free, and its old outputs lie in the folder."""
    reason = status_of(stage, recipe, verify=verify)
    if reason is None:
        print(f"{stage.name:<9} up to date")
        return False, None
    for path in stage.inputs(recipe):
        if not path.is_file():
            raise RecipeError(_missing(stage, path))
    stage.check(recipe)
    print(f"{stage.name:<9} running ({reason})")
    return True, move_aside(stage, recipe)


def _end(
    stage: Stage, recipe: Recipe, inputs: list[FileRecord], output: StageOutput, seconds: float
) -> None:
    """The manifest, which makes the stage a finished one."""
    manifest = stage.manifest(recipe)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(
        manifest,
        stage_manifest(
            stage.name,
            stage.hash(recipe),
            inputs,
            [_record(path, manifest.parent) for path in _files(output.outputs)],
            counts=output.counts,
            seconds=round(seconds, 3),
            belongs=[
                os.path.relpath(path, manifest.parent) for path in output.belongs or output.outputs
            ],
            versions=versions("torch", "deepspeed", "transformers", "tokenizers", "numpy"),
        ),
    )
    _note_settings(stage, recipe)
    print(f"{stage.name:<9} done in {seconds:.1f} s")


def _note_settings(stage: Stage, recipe: Recipe) -> None:
    """The run's own recipe says what its later stages were made with, too."""
    path = RunFolder(recipe.run_folder).config
    if stage.name == "pretrain" or not path.is_file():
        return
    settings = recipe.model_dump(mode="json", include={*stage.sections})
    config = yaml.safe_load(path.read_text("utf-8")) | settings
    write_atomic(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def status_of(stage: Stage, recipe: Recipe, *, verify: bool = False) -> str | None:
    """None when the stage is done and current, else why it must run."""
    return stage_is_current(
        stage.manifest(recipe), stage.hash(recipe), stage.inputs(recipe), verify
    )


def print_status(recipe: Recipe, *, verify: bool = False) -> None:
    """A line a stage: up to date, not asked for, or why it must run."""
    try:
        reason = prepare_status(recipe.model_dump(mode="json"))
    except PipelineError as error:  # a missing corpus is a status too
        reason = str(error)
    print(f"{'prepare':<9} {reason or 'up to date'}")
    for stage in STAGES:
        if not stage.wanted(recipe):
            print(f"{stage.name:<9} not asked for")
            continue
        print(f"{stage.name:<9} {status_of(stage, recipe, verify=verify) or 'up to date'}")


def move_aside(stage: Stage, recipe: Recipe) -> Path | None:
    """Move the outputs that an earlier run of this stage listed into a folder of `superseded/`;
    the folder, None when there are none.

    Only what a manifest proves to be ours is moved; anything else is left for the stage to refuse.
    A manifest that was altered cannot have other folders moved.
    """
    manifest = stage.manifest(recipe)
    if not manifest.is_file():
        return None
    target = free_path(RunFolder(recipe.run_folder).root / "superseded" / stage.name)
    target.mkdir(parents=True)
    for name in read_manifest(manifest).get("belongs", []):
        path = manifest.parent / name
        if not _is_ours(path, manifest, recipe):
            print(f"{stage.name:<9} left {path} where it is: it lies outside the run folder")
        elif path.exists():
            os.rename(path, target / path.name)
    os.rename(manifest, target / manifest.name)
    return target


def put_back(aside: Path, manifest: Path) -> bool:
    """Undo `move_aside` where the stage was refused before it wrote anything: a wrong key must not
    cost the result that stands. False where something has been written."""
    names = read_manifest(aside / manifest.name).get("belongs", [])
    places = {aside / Path(name).name: manifest.parent / name for name in names}
    moved = {path: place for path, place in places.items() if path.exists()}
    if any(place.exists() for place in moved.values()):
        return False
    for path, place in moved.items():
        os.rename(path, place)
    os.rename(aside / manifest.name, manifest)
    aside.rmdir()
    return True


def _is_ours(path: Path, manifest: Path, recipe: Recipe) -> bool:
    """Whether the entry itself, not what a link there leads to, is of this run."""
    place = Path(os.path.normpath(path.parent.resolve() / path.name))
    if place in manifest.resolve().parents:
        return False
    return place == recipe.export_folder.resolve() or recipe.run_folder.resolve() in place.parents


def _record(path: Path, base: Path) -> FileRecord:
    record = FileRecord.of(path)
    return replace(record, path=os.path.relpath(path, base))


def _files(outputs: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in outputs:
        files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return files


def _missing(stage: Stage, path: Path) -> str:
    name = path.stem if path.parent.name == "stages" else "prepare"
    if name in ALL:
        command = (
            "python -m data_prep prepare" if name == "prepare" else f"python -m pipeline {name}"
        )
        return f"{stage.name} needs {path}, which is not there: run `{command} RECIPE` first"
    return f"{stage.name} needs {path}, which does not exist"


def print_results(recipe: Recipe) -> None:
    """The table at the end of a run, and where the report lies."""
    folder = RunFolder(recipe.run_folder)
    heldout = folder.read_json(folder.evals / "heldout.json") or {}
    sentiment = folder.read_json(folder.evals / "sentiment.json") or {}
    rows = [
        (
            "held-out bits per byte",
            heldout.get("bits_per_byte"),
            heldout.get("unigram_bits_per_byte"),
            "unigram",
        ),
        (
            "sentiment accuracy",
            sentiment.get("accuracy"),
            sentiment.get("majority_accuracy"),
            "majority",
        ),
    ]
    transfer = folder.read_json(folder.evals / "transfer.json") or {}
    for name, found in transfer.items():
        baseline = found["majority_accuracy"]
        rows.append((f"{name} accuracy", found["accuracy"], baseline, "majority"))
        rows.append((f"{name} accuracy, one unit", found["unit_accuracy"], baseline, "majority"))
    for found in folder.read_json(folder.evals / "tasks.json") or []:
        name = f"{found['task']} accuracy, {found['shots']} shots"
        rows.append((name, found["accuracy"], found.get("chance", 0.0), "chance"))
    print(f"\n{recipe.run.name:<26} {'model':>8} {'baseline':>9}")
    for name, ours, baseline, which in rows:
        if ours is not None:
            print(f"{name:<26} {ours:>8.3f} {baseline:>9.3f}  ({which})")
    print(f"report: {folder.root / 'report.html'}")
