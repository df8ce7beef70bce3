"""Checkpoints that are either whole or not there.

    checkpoints/global_stepN/   state/rankR.safetensors, trainer.json, plugins/NAME.safetensors,
                                rng/rankR.safetensors, manifest.json
    checkpoints/latest          the tag of the newest one

A save goes to `global_stepN.tmp`; the manifest with every file's size and hash is written last,
then the folder gets its name, then `latest` moves. A folder without a valid manifest is never
loaded. Weights and optimizer, which are most of it, are written by a thread while training goes on.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.errors import DataError, PipelineError, RecipeError
from data_prep.manifest import FileRecord, free_path, inside, read_manifest, sync, write_atomic
from pipeline.ranks import agree, from_rank0, gather_objects, rank, world_size
from pipeline.recipe.checkpoint import CheckpointConfig

_TAG = re.compile(r"global_step(\d+)(\.previous)?")
_SPARE_BYTES = 16 << 20  # for what is small, and for rounding


def tag_of(applied: int) -> str:
    return f"global_step{applied}"


class Saving:
    """A save whose large files are being written; `commit` makes a checkpoint of it."""

    def __init__(self, checkpoints: Path, tag: str, write: Callable[[], list[FileRecord]]) -> None:
        self.checkpoint = checkpoints / tag
        self._write = write
        self._records: list[FileRecord] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"save {tag}")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._records = self._write()
        except Exception as error:  # whatever it is, `commit` tells all ranks
            self._error = error

    @property
    def written(self) -> bool:
        """Whether this rank has nothing left to write."""
        return not self._thread.is_alive()

    def commit(self, keep: CheckpointConfig) -> None:
        """Wait for all ranks, publish, and drop what is too old. Collective.

        PipelineError on every rank when one of them could not write: nothing is published, and
        what stood before still stands.
        """
        folder = self.checkpoint.with_name(f"{self.checkpoint.name}.tmp")
        own = agree(self._own_records)  # every rank has written when this returns
        large = [record for part in gather_objects(own) for record in part]
        known = {folder / record["path"] for record in large}
        small = sorted(p for p in folder.rglob("*") if p.is_file() and p not in known)
        mine = agree(
            lambda: [
                FileRecord.of(path, relative_to=folder).as_json()
                for path in small[rank() :: world_size()]
            ]
        )
        records = large + [record for part in gather_objects(mine) for record in part]
        from_rank0(lambda: _publish(folder, self.checkpoint, records, keep))

    def _own_records(self) -> list[dict[str, Any]]:
        self._thread.join()
        if self._error is not None:
            raise PipelineError(
                f"{self.checkpoint} could not be written ({self._error}): free some space or mend "
                "the folder, and run the same command; earlier checkpoints still stand"
            ) from self._error
        return [record.as_json() for record in self._records]


def begin(checkpoints: Path, tag: str, size: int) -> Path:
    """An empty `tag.tmp` folder for all ranks to write `size` bytes into. Collective.

    PipelineError when there is no room for them.
    """

    def make() -> Path:
        folder = checkpoints / f"{tag}.tmp"
        for leftover in checkpoints.glob("global_step*.tmp"):  # of saves that were killed
            shutil.rmtree(leftover)
        for part in ("state", "plugins", "rng"):
            (folder / part).mkdir(parents=True)
        free = shutil.disk_usage(folder).free
        if free < size + _SPARE_BYTES:
            shutil.rmtree(folder)
            raise PipelineError(
                f"{checkpoints} has {free / 1e9:.2f} GB free, a checkpoint takes {size / 1e9:.2f} "
                "GB: free some space, or lower checkpoint.keep_last, and run the same command; "
                "earlier checkpoints still stand"
            )
        return folder

    return from_rank0(make)


def _publish(
    folder: Path, final: Path, records: list[dict[str, Any]], keep: CheckpointConfig
) -> None:
    checkpoints, tag = final.parent, final.name
    manifest = {"format": 2, "tag": tag, "files": sorted(records, key=lambda r: r["path"])}
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    for part in {folder / Path(record["path"]).parent for record in records} | {folder}:
        sync(part)
    if final.exists():
        # As many applied steps as an earlier save: that one stays loadable until this one stands.
        _remove(checkpoints / f"{tag}.previous")
        final.rename(checkpoints / f"{tag}.previous")
    folder.rename(final)
    write_atomic(checkpoints / "latest", tag)
    sync(checkpoints)  # on the disk itself, before what is older goes
    _remove(checkpoints / f"{tag}.previous")
    _prune(final, keep)


def _prune(newest: Path, keep: CheckpointConfig) -> None:
    """Remove what is older than the newest `keep_last`, of which `newest` is one. What claims to be
    of a later step was passed over as damaged when this run began, and is left to be looked at."""
    step = _step_of(newest)
    older = [path for path in list_checkpoints(newest.parent) if _step_of(path) < step]
    for path in older[keep.keep_last - 1 :]:
        if not keep.keep_every_steps or _step_of(path) % keep.keep_every_steps:
            _remove(path)


def _remove(folder: Path) -> None:
    """Delete a checkpoint. Renamed first: a kill half-way leaves no half one under a good name."""
    if folder.exists():
        doomed = folder.with_name(folder.name + ".tmp")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _step_of(checkpoint: Path) -> int:
    match = _TAG.fullmatch(checkpoint.name)
    assert match is not None  # only folders of such names are listed
    return int(match[1])


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
        for record in records:
            inside(folder, record.path)
    except (DataError, KeyError, TypeError, ValueError) as error:
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
    if own := _descendant(folder, checkpoints):
        return own
    if found := problem(folder):
        raise DataError(f"run.resume={resume}: {found}; give the path of a global_stepN folder")
    return folder


def _descendant(origin: Path, checkpoints: Path) -> Path | None:
    """The newest checkpoint of a run that has begun at `origin` before, and goes on; the origin may
    be gone by now."""
    for folder in list_checkpoints(checkpoints):
        path = folder / "trainer.json"
        began = read_manifest(path).get("resumed_from") if path.is_file() else None
        if began == str(origin.resolve()) and problem(folder) is None:
            return folder
    return None


def branch_off(origin: Path, checkpoints: Path) -> Path | None:
    """Where a run that goes on from `origin` among its own `checkpoints` has put the later ones,
    which would be taken for what follows; None where there are none."""
    if origin.resolve().parent != checkpoints.resolve():
        return None
    later = [path for path in list_checkpoints(checkpoints) if _step_of(path) > _step_of(origin)]
    if not later:
        return None
    target = free_path(checkpoints.parent / "superseded" / "checkpoints")
    target.mkdir(parents=True)
    for path in later:
        path.rename(target / path.name)
    write_atomic(checkpoints / "latest", origin.name)
    return target
