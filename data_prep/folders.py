"""Result folders: built beside their place, renamed into it, and never overwritten.

FOLDER.tmp is the scratch folder. It holds `plan.json`, which says what is being made, and
`work/`, where claims, markers and the spool lie. Whoever makes the same thing joins in or goes
on; whoever makes another thing is refused while somebody works there.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .claims import Claim, TaskFolder, beating
from .errors import DataError, RecipeError
from .manifest import create_new, free_path, read_manifest, sync
from .pool import ALL, Share

PLAN = "plan.json"
WORK = "work"
_SCRATCH_NAMES = {PLAN, WORK, "tokenizer", "rejects.jsonl", "card.json", "README.md"}
_SCRATCH_SUFFIXES = (".shard", ".parquet", ".png", ".tmp")


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


def scratch_of(folder: Path) -> Path:
    """FOLDER.tmp, made when it is not there. RecipeError when it holds a file that prepare does not
    write."""
    scratch = folder.with_name(folder.name + ".tmp")
    (scratch / WORK).mkdir(parents=True, exist_ok=True)
    _refuse_in_the_way(scratch)
    return scratch


def open_scratch(scratch: Path, plan: dict[str, Any], me: Claim) -> None:
    """Begin or go on making what `plan` says; the work of the same plan is kept. `me` is this
    run's presence: two runs that begin at once see each other before either clears anything.

    `plan` has a `read` entry: what was read and cleaned stays when only the rest has changed;
    and `direct`, whether reading writes the shards.
    RecipeError when somebody is making another thing there.
    """
    path = scratch / PLAN
    while True:
        if create_new(path, json.dumps(plan, ensure_ascii=False)):
            sync(path)
            return
        if (found := _read_plan(path)) == plan:
            return
        _refuse_company(scratch, me)
        _clear(scratch, found.get("read") == plan["read"], plan["direct"])


@contextmanager
def presence(scratch: Path, share: Share = ALL) -> Iterator[Claim]:
    """While the body runs, others see that somebody works in the scratch folder, and on what."""
    runs = TaskFolder(scratch / WORK / "runs")
    claim = runs.claim(f"run-{share.part}-{share.parts}-{uuid.uuid4().hex}")
    assert isinstance(claim, Claim)  # nobody else has that name
    with beating(claim):
        try:
            yield claim
        finally:
            claim.path.unlink(missing_ok=True)


def company(scratch: Path, me: Claim | None = None) -> str | None:
    """A living run in the scratch folder other than this one, as words."""
    return next((o for name, o in _living(scratch).items() if me is None or name != me.name), None)


def shares_at_work(scratch: Path) -> list[Share]:
    """Of every living run in the scratch folder, this one included, the tasks that are its own."""
    return [Share(*map(int, name.split("-")[1:3])) for name in _living(scratch)]


def _living(scratch: Path) -> dict[str, str]:
    """The runs that live in the scratch folder, by name, with their owners as words."""
    runs = TaskFolder(scratch / WORK / "runs")
    names = {path.name.partition(".")[0] for path in runs.folder.glob("run-*")}
    return {name: owner for name in names if (owner := runs.owner(name)) is not None}


def leave(scratch: Path) -> None:
    """Delete a scratch folder that turned out not to be needed, unless somebody is in it."""
    if company(scratch) is None:
        shutil.rmtree(scratch, ignore_errors=True)


def put_in_place(scratch: Path, folder: Path) -> Path | None:
    """Rename `scratch` to `folder`; an earlier result moves to the FOLDER.superseded-N returned."""
    for left in scratch.glob("*.tmp"):  # of a process that was killed while it wrote
        left.unlink()
    beside = folder.with_name(f"{folder.name}.superseded")
    aside = free_path(beside) if _occupied(folder) else None
    if aside:
        os.replace(folder, aside)
    os.replace(scratch, folder)
    clear_work(folder)
    return aside


def clear_work(folder: Path) -> None:
    """Delete what only making it needed; a run killed just after its last step left it."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    (folder / PLAN).unlink(missing_ok=True)


def _refuse_in_the_way(scratch: Path) -> None:
    for path in scratch.iterdir():
        known = path.name in _SCRATCH_NAMES or path.name.startswith("manifest.json")
        if not known and not path.name.endswith(_SCRATCH_SUFFIXES):
            raise RecipeError(f"{path} is in the way: prepare works in {scratch}; move it away")


def _refuse_company(scratch: Path, me: Claim) -> None:
    if other := company(scratch, me):
        hint = "wait for it, stop it, or choose another data.folder"
        what = f"{other} is preparing another recipe or other inputs in {scratch}"
        raise RecipeError(f"{what}; {hint}")


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        return read_manifest(path)
    except DataError:
        return {}


def _clear(scratch: Path, keep_read: bool, direct: bool) -> None:
    kept = {"runs"} | ({"read", "leaks"} if keep_read else set())
    # Where reading writes shards, they are part of what it read. Others are written again.
    kept_suffixes = (".shard",) if keep_read and direct else ()
    if (scratch / WORK).is_dir():
        for path in (scratch / WORK).iterdir():
            if path.name not in kept:
                shutil.rmtree(path)
    for path in scratch.iterdir():
        if path.name == "tokenizer":
            shutil.rmtree(path)
        elif path.name not in (WORK, PLAN) and not path.name.endswith(kept_suffixes):
            path.unlink()
    # Last: while it stands, whoever comes knows that there is something to clear.
    (scratch / PLAN).unlink()


def _occupied(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
