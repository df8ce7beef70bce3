"""Which folders are runs, below those that were asked for, and the only way to their files."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

_DEPTH = 3  # of folders below the one asked for: runs/STUDY/ARM and one more
_MARKS = ("config.yaml", "metrics.jsonl")


class Run(NamedTuple):
    """A run folder. `id` stands for its path wherever a browser could name it."""

    id: str
    name: str
    root: Path


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run in or below `folders`, by name. Links inside them are not followed."""
    found: dict[Path, str] = {}
    for folder in folders:
        for root in _search(folder.resolve(), _DEPTH):
            inner = root.relative_to(folder.resolve())
            found.setdefault(root, str(inner) if inner.parts else root.name)
    names = [*found.values()]
    runs = [
        Run(_id(root), name if names.count(name) == 1 else str(root), root)
        for root, name in found.items()
    ]
    return sorted(runs, key=lambda run: run.name)


def open_file(run: Run, name: str) -> BinaryIO | None:
    """A regular file that lies in the run's folder itself; None where there is none.

    A link is refused by the system, so nothing outside the folder can be read through it.
    """
    try:
        number = os.open(run.root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(number).st_mode):
        return open(number, "rb")
    os.close(number)
    return None


def _search(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # removed meanwhile, or not ours to read
        return
    if any(entry.name in _MARKS for entry in entries):
        yield folder
        return
    for entry in entries:
        if depth and entry.is_dir(follow_symlinks=False):
            yield from _search(folder / entry.name, depth - 1)


def _id(root: Path) -> str:
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
