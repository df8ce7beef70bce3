"""Result folders: built beside their place, renamed into it, and never overwritten."""

from __future__ import annotations

import os
import shutil
from itertools import count
from pathlib import Path

from .errors import DataError, RecipeError
from .manifest import read_manifest

_SCRATCH_NAMES = {"order", "tokenizer", "manifest.json", "manifest.json.tmp"}


def refuse_foreign(folder: Path) -> None:
    """RecipeError when `folder` holds anything but an earlier result of prepare."""
    if not _occupied(folder):
        return
    try:
        ours = read_manifest(folder / "manifest.json").get("stage") == "prepare"
    except DataError:
        ours = False
    if not ours:
        hint = "nothing was overwritten: move it away or choose another data.folder"
        raise RecipeError(f"{folder} exists and holds no manifest of prepare; {hint}")


def new_scratch(folder: Path) -> Path:
    """An empty FOLDER.tmp; what an interrupted run left there is deleted.

    RecipeError when FOLDER.tmp holds a file that prepare does not write.
    """
    scratch = folder.with_name(folder.name + ".tmp")
    if scratch.exists():
        for path in scratch.iterdir():
            if path.name not in _SCRATCH_NAMES and ".shard" not in path.name:
                raise RecipeError(f"{path} is in the way: prepare works in {scratch}; move it away")
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    return scratch


def put_in_place(scratch: Path, folder: Path) -> Path | None:
    """Rename `scratch` to `folder`; an earlier result moves to the FOLDER.superseded-N returned."""
    aside = _free_name(folder) if _occupied(folder) else None
    if aside:
        os.replace(folder, aside)
    os.replace(scratch, folder)
    return aside


def _free_name(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}.superseded-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


def _occupied(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
