"""Checkpoints that are either whole or not there.

    checkpoints/global_stepN/   DeepSpeed's files, trainer.json, plugins/NAME.safetensors,
                                rng/rankR.safetensors, manifest.json
    checkpoints/latest          the tag of the newest one, for DeepSpeed's own tools

A save goes to `global_stepN.tmp`; the manifest with every file's size and hash is written last,
then the folder gets its name, then `latest` moves. DeepSpeed alone writes in place and moves
`latest` before the other ranks have finished. A folder without a valid manifest is never loaded.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from data_prep.errors import DataError, RecipeError
from data_prep.manifest import FileRecord, read_manifest, write_atomic
from pipeline.ranks import agree, barrier, from_rank0, gather_objects, rank, world_size

_TAG = re.compile(r"global_step(\d+)(\.previous)?")


def tag_of(applied: int) -> str:
    return f"global_step{applied}"


def commit(checkpoints: Path, tag: str, keep_last: int) -> None:
    """Turn the finished `tag.tmp` into a checkpoint and drop the oldest. Collective."""
    folder = checkpoints / f"{tag}.tmp"
    barrier()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # Every rank hashes its share of the files.
    mine = agree(
        lambda: [
            FileRecord.of(path, relative_to=folder).as_json()
            for path in files[rank() :: world_size()]
        ]
    )
    records = [record for part in gather_objects(mine) for record in part]
    from_rank0(lambda: _publish(checkpoints, tag, records, keep_last))


def _publish(checkpoints: Path, tag: str, records: list[dict[str, Any]], keep_last: int) -> None:
    folder, final = checkpoints / f"{tag}.tmp", checkpoints / tag
    manifest = {"format": 1, "tag": tag, "files": sorted(records, key=lambda r: r["path"])}
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    if final.exists():
        # As many applied steps as an earlier save: that one stays loadable until this one stands.
        _remove(checkpoints / f"{tag}.previous")
        final.rename(checkpoints / f"{tag}.previous")
    folder.rename(final)
    write_atomic(checkpoints / "latest", tag)
    _remove(checkpoints / f"{tag}.previous")
    for path in list_checkpoints(checkpoints)[keep_last:]:
        _remove(path)


def _remove(folder: Path) -> None:
    """Delete a checkpoint. Renamed first: a kill half-way leaves no half one under a good name."""
    if folder.exists():
        doomed = folder.with_name(folder.name + ".tmp")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def begin(checkpoints: Path, tag: str) -> Path:
    """An empty `tag.tmp` folder for all ranks to write into. Collective."""

    def make() -> Path:
        folder = checkpoints / f"{tag}.tmp"
        for leftover in checkpoints.glob("global_step*.tmp"):  # of saves that were killed
            shutil.rmtree(leftover)
        (folder / "plugins").mkdir(parents=True)
        (folder / "rng").mkdir()
        return folder

    return from_rank0(make)


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Folders named like checkpoints, newest first; nothing is verified."""
    if not checkpoints.is_dir():
        return []
    found = [
        (match, path) for path in checkpoints.iterdir() if (match := _TAG.fullmatch(path.name))
    ]
    newest_first = sorted(found, key=lambda f: (int(f[0][1]), not f[0][2]), reverse=True)
    return [path for _, path in newest_first]


def problem(folder: Path, verify: bool = True) -> str | None:
    """Why `folder` cannot be loaded, or None. `verify` hashes every file."""
    if not folder.is_dir():
        return f"{folder} does not exist"
    if not (folder / "manifest.json").is_file():
        return f"{folder} has no manifest.json: the save never finished, or the file was removed"
    try:
        manifest = read_manifest(folder / "manifest.json")
        records = [FileRecord.from_json(entry) for entry in manifest["files"]]
    except (DataError, KeyError, TypeError) as error:
        return f"{folder}: its manifest.json is damaged ({error})"
    for record in records:
        if found := record.problem(folder, verify):
            return f"{folder}: {found}"
    return None


def find_checkpoint(checkpoints: Path, name: str | None = None) -> Path:
    """The newest valid checkpoint, or the one called `name`.

    A damaged newer one is passed over, with a word on stderr. RecipeError when there is none at
    all, DataError when what is there cannot be used.
    """
    if name is not None:
        if not _TAG.fullmatch(name):
            raise RecipeError(f"{name!r} is not a checkpoint name: expected global_stepN")
        if found := problem(checkpoints / name):
            raise DataError(f"checkpoint {name}: {found}; choose another one or restore it")
        return checkpoints / name
    candidates = list_checkpoints(checkpoints)
    if not candidates:
        raise RecipeError(
            f"{checkpoints} holds no checkpoint: run `python -m pipeline pretrain` first"
        )
    problems: list[str] = []
    for folder in candidates:
        if (found := problem(folder)) is None:
            for line in problems:
                print(f"warning: passed over a damaged checkpoint: {line}", file=sys.stderr)
            return folder
        problems.append(found)
    raise DataError(
        "no checkpoint can be used: "
        + "; ".join(problems)
        + ". Restore the files, or move the run "
        "folder away to start again"
    )


def resolve_resume(resume: str, checkpoints: Path) -> Path | None:
    """The checkpoint that `run.resume` asks for, or None to start fresh."""
    present = bool(list_checkpoints(checkpoints))
    if resume == "never":
        if present:
            raise RecipeError(
                f"run.resume=never, but {checkpoints} holds checkpoints: choose another run.name, "
                "move the folder away, or use run.resume=auto"
            )
        return None
    if resume == "auto":
        return find_checkpoint(checkpoints) if present else None
    if resume == "must":
        return find_checkpoint(checkpoints)
    folder = Path(resume)
    if found := problem(folder):
        raise DataError(f"run.resume={resume}: {found}; give the path of a global_stepN folder")
    return folder
