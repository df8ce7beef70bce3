"""Manifests: what a stage read, wrote and was asked for, so that it can be trusted or redone.

A manifest is a JSON file written last in its folder. It records every input and output with
size, modification time and sha256, and a hash of the recipe sections the stage depends on.
Files appear whole or not at all: they are written beside their place and renamed into it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from .errors import DataError

_BEGIN_BYTES = 2**22


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`, which is never seen half written."""
    path = Path(path)
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "wb") as stream:
        stream.write(data.encode() if isinstance(data, str) else data)
        stream.flush()
        os.fsync(stream.fileno())
    put_in_place(beside, path)


def put_in_place(beside: Path, path: Path) -> None:
    """Rename; where another process that does the same work has just done so, its file stands."""
    try:
        os.replace(beside, path)
    except FileNotFoundError:
        if not path.exists():
            raise


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy, never seen half written. NumPy writing to a file itself would hide
    that a disk is full."""
    content = io.BytesIO()
    np.save(content, array)
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(content.getbuffer())
    sync(beside)
    put_in_place(beside, path)


def free_path(stem: Path) -> Path:
    """STEM-N with the smallest N, from 1, that is not there yet."""
    names = (stem.with_name(f"{stem.name}-{number}") for number in count(1))
    return next(path for path in names if not path.exists())


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk itself, not only in the memory of the
    system."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_new(path: Path, text: str) -> bool:
    """Create a file with its content at once; False when it is there already, whoever made it."""
    # The dot keeps it from those who look for names like that of the file.
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    beside.write_text(text)
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    finally:
        beside.unlink()
    return True


class HashedFile:
    """A file that is written from front to back, hashed on its way, and never seen half written:
    it stands beside its place until `close`, and on the disk itself from then on."""

    def __init__(self, path: Path) -> None:
        self._path, self._beside = path, path.with_name(path.name + ".tmp")
        self._digest = xxhash.xxh3_128()
        self._written = self._begun = 0
        self._stream = open(self._beside, "wb", buffering=0)

    def write(self, piece: bytes | memoryview) -> None:
        """Append bytes."""
        self._digest.update(piece)
        data = memoryview(piece)
        while data:  # an unbuffered write may take a part of what it is given
            data = data[self._stream.write(data) :]
        self._written += len(piece)
        if self._written - self._begun >= _BEGIN_BYTES:
            self._begin_writeback()

    def _begin_writeback(self) -> None:
        """Have the system begin to bring what is new to the disk, so that `close` hardly waits."""
        if hasattr(os, "posix_fadvise"):
            new = self._begun, self._written - self._begun
            os.posix_fadvise(self._stream.fileno(), *new, os.POSIX_FADV_DONTNEED)
        self._begun = self._written

    def digest(self) -> bytes:
        """The xxh3-128 of what has been written so far."""
        return self._digest.digest()

    def close(self, root: Path) -> FileRecord:
        """Put the file in place; returns its record, named relative to `root`."""
        os.fsync(self._stream.fileno())
        self._stream.close()
        put_in_place(self._beside, self._path)
        status, name = self._path.stat(), self._path.relative_to(root).as_posix()
        digest = self._digest.hexdigest()
        return FileRecord(name, status.st_size, status.st_mtime_ns, xxh3=digest)


def sha256_file(path: Path | str) -> str:
    """The sha256 of a file's bytes, in hex."""
    return _digest(path, hashlib.sha256())


def _digest(path: Path | str, digest: Any) -> str:
    buffer = memoryview(bytearray(1 << 18))
    with open(path, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class FileRecord:
    """One file as it was: size in bytes, modification time in nanoseconds, and a hash in hex.

    The hash is the sha256, or for shards, which are large and written by us alone, the xxh3-128:
    it finds damage as surely, at the speed of memory.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str | None = None
    xxh3: str | None = None

    @classmethod
    def of(
        cls, path: Path | str, relative_to: Path | None = None, fast: bool = False
    ) -> FileRecord:
        """Record the file at `path`; its name is kept relative to `relative_to` when given. `fast`
        takes the xxh3, for large files of our own."""
        path = Path(path)
        name = path.relative_to(relative_to).as_posix() if relative_to else str(path)
        status = path.stat()
        if fast:
            digest = _digest(path, xxhash.xxh3_128())
            return cls(name, status.st_size, status.st_mtime_ns, xxh3=digest)
        return cls(name, status.st_size, status.st_mtime_ns, sha256_file(path))

    def as_json(self) -> dict[str, Any]:
        """The record as a manifest holds it."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> FileRecord:
        """The record in a manifest entry, which may hold more; DataError when a field lacks."""
        try:
            hashes = {name: record[name] for name in ("sha256", "xxh3") if record.get(name)}
            if len(hashes) == 1:
                return cls(record["path"], record["size"], record["mtime_ns"], **hashes)
            raise KeyError
        except (KeyError, TypeError):
            hint = "the manifest was altered: run its stage again"
            raise DataError(f"manifest entry {record!r:.80} is no file record; {hint}") from None

    def problem(self, root: Path | None = None, verify: bool = False) -> str | None:
        """None when the file is unchanged, else a sentence saying how it differs.

        Equal size and modification time are trusted unless `verify`; when only the time
        differs (a copy, a checkout) the content decides.
        """
        path = (root or Path()) / self.path
        if not path.is_file():
            return f"{self.path} is missing"
        status = path.stat()
        if status.st_size != self.size:
            return f"{self.path}: {status.st_size} bytes, {self.size} were recorded"
        if status.st_mtime_ns == self.mtime_ns and not verify:
            return None
        if self.xxh3 is not None:
            found, recorded, name = _digest(path, xxhash.xxh3_128()), self.xxh3, "xxh3"
        else:
            found, recorded, name = sha256_file(path), self.sha256 or "", "sha256"
        return None if found == recorded else f"{self.path}: {name} differs"


def write_manifest(path: Path | str, manifest: dict[str, Any]) -> None:
    """Write a manifest as indented JSON; call it after everything it vouches for."""
    write_atomic(path, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def read_manifest(path: Path | str) -> dict[str, Any]:
    """Read a manifest; DataError when it is missing or not a JSON object."""
    try:
        manifest = json.loads(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is missing: the stage that writes it has not finished") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}): run its stage again") from None
    if not isinstance(manifest, dict):
        raise DataError(f"{path} holds {type(manifest).__name__}, expected a JSON object")
    return manifest


def inside(root: Path, name: str) -> Path:
    """The path that a manifest in `root` calls `name`; DataError when it leads out of the folder,
    by `..`, as an absolute path, or through a link."""
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{root}: its manifest names {name!r}, which leads out of the folder")
    return path


def recipe_hash(*sections: Any) -> str:
    """sha256 in hex of recipe sections (pydantic models or plain values), key order aside."""
    plain = [s.model_dump(mode="json") if hasattr(s, "model_dump") else s for s in sections]
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def versions(*distributions: str) -> dict[str, str | None]:
    """Installed versions by distribution name, None when absent; nothing is imported."""
    found: dict[str, str | None] = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def stage_manifest(
    stage: str,
    recipe_hash: str,
    inputs: Sequence[FileRecord],
    outputs: Sequence[FileRecord],
    **extra: Any,
) -> dict[str, Any]:
    """The manifest of a finished stage, in the layout `stage_is_current` reads."""
    return {
        "stage": stage,
        "recipe_hash": recipe_hash,
        **extra,
        "inputs": [record.as_json() for record in inputs],
        "outputs": [record.as_json() for record in outputs],
    }


def stage_is_current(
    manifest_path: Path, recipe_hash: str, inputs: Sequence[Path], verify: bool = False
) -> str | None:
    """None when the stage need not run again, else the reason why it must.

    Inputs are named as they were when recorded, outputs relative to the manifest's folder.
    """
    if not manifest_path.is_file():
        return "never ran"
    try:
        manifest = read_manifest(manifest_path)
    except DataError as error:
        return str(error)
    if manifest.get("recipe_hash") != recipe_hash:
        return "recipe changed"
    recorded = {r["path"]: FileRecord.from_json(r) for r in manifest.get("inputs", [])}
    named = {str(path) for path in inputs}
    if different := sorted(named.symmetric_difference(recorded)):
        change = "is new" if different[0] in named else "is no longer read"
        return f"input {different[0]} {change}"
    for record in recorded.values():
        if problem := record.problem(None, verify):
            return f"input changed: {problem}"
    for entry in manifest.get("outputs", []):
        if problem := FileRecord.from_json(entry).problem(manifest_path.parent, verify):
            return f"output changed: {problem}"
    return None
