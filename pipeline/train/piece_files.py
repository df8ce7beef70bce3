"""Pieces of the training state in files: one safetensors file a rank, no pickles.

    state/rank0.safetensors   tensors NAME:KEY:START, fp32, flat; what is no tensor in its metadata

A reader puts pieces together from whatever files there are, so the number of ranks that saved does
not matter to those that load.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_prep.errors import DataError
from data_prep.manifest import FileRecord, sync
from pipeline.train.pieces import WEIGHT, Piece

OF_A_RANK = "rank"  # rankN/NAME: what belongs to one rank and no other


@dataclass(frozen=True)
class Snapshot:
    """What one rank has to write, out of reach of the next step."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]


def snapshot(held: Iterable[Piece], about: dict[str, Any], copy: bool) -> Snapshot:
    """Of these pieces, on the CPU. Without `copy` the tensors there are the live ones: they must
    be written before the next step."""
    taken = Snapshot({}, {**about, "shapes": {}, "numbers": {}})
    for piece in held:
        for key, values in piece.tensors().items():
            name = f"{piece.name}:{key}:{piece.start}"
            taken.tensors[name] = values.detach().to("cpu", copy=copy)
        taken.about["shapes"][piece.name] = list(piece.shape)
        taken.about["numbers"][piece.name] = piece.numbers()
    return taken


def write(taken: Snapshot, folder: Path, rank: int) -> list[FileRecord]:
    """`state/rankN.safetensors` in the checkpoint being made; its record, hashed from the disk."""
    path = folder / "state" / f"rank{rank}.safetensors"
    save_file(taken.tensors, path, {"about": json.dumps(taken.about)})
    sync(path)
    return [FileRecord.of(path, relative_to=folder, fast=True)]


@dataclass
class SavedPieces:
    """The state of a checkpoint, whatever stage and number of ranks it comes from."""

    folder: Path
    # By name and key: start, size, file, and what the part is called there.
    _parts: dict[str, dict[str, list[tuple[int, int, Any, str]]]] = field(default_factory=dict)
    shapes: dict[str, torch.Size] = field(default_factory=dict)
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> SavedPieces:
        """Read the names in a checkpoint's files. DataError for a damaged or missing file."""
        found = cls(folder)
        paths = sorted((folder / "state").glob("rank*.safetensors"))
        if not paths:
            raise DataError(f"{folder} holds no state/rank*.safetensors: it is no checkpoint")
        for path in paths:
            try:
                found._index(safe_open(path, "pt"))
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                raise DataError(f"{path} cannot be read ({error}): restore it") from None
        return found

    def _index(self, file: Any) -> None:
        about = json.loads(file.metadata()["about"])
        self.shapes |= {name: torch.Size(s) for name, s in about.pop("shapes").items()}
        self.numbers |= about.pop("numbers")
        self.about |= about
        for entry in file.keys():  # noqa: SIM118
            name, key, start = entry.rsplit(":", 2)
            size = file.get_slice(entry).get_shape()[0]
            parts = self._parts.setdefault(name, {}).setdefault(key, [])
            parts.append((int(start), size, file, entry))

    def keys(self, name: str) -> list[str]:
        """What was saved of a parameter: `weight` and the optimizer's tensors."""
        return list(self._parts.get(name, {}))

    @property
    def has_optimizer_state(self) -> bool:
        return any(key != WEIGHT for keys in self._parts.values() for key in keys)

    def read(self, name: str, key: str, start: int, size: int) -> Tensor:
        """`size` values from `start` on, flat. DataError when not all of them were saved."""
        out: Tensor | None = None
        found = 0
        for first, length, file, entry in self._parts.get(name, {}).get(key, []):
            low, high = max(first, start), min(first + length, start + size)
            if low >= high:
                continue
            values = file.get_slice(entry)[low - first : high - first]
            out = values.new_empty(size) if out is None else out
            out[low - start : high - start] = values
            found += high - low
        if out is None or found != size:
            raise DataError(
                f"{self.folder} holds {found} of {size} values of {key} of {name}: its files do "
                "not belong together, restore them"
            )
        return out

    def whole(self, name: str) -> Tensor:
        """A parameter in full, in its shape."""
        shape = self.shapes[name]
        return self.read(name, WEIGHT, 0, math.prod(shape)).view(shape)

    def fill(self, piece: Piece) -> None:
        """Write the saved values over a piece. A parameter that no step had reached has no moments
        yet: they are dropped, or zero where they share a tensor with others'. DataError where
        others lack, or more was saved."""
        own, saved = piece.tensors(), {*self.keys(piece.name)}
        if saved == {WEIGHT} and piece.offset is None:
            piece.state.clear()
            own = piece.tensors()
        if {*own} != saved and saved != {WEIGHT}:
            raise DataError(
                f"{self.folder} holds {sorted(saved)} of {piece.name}, this run needs "
                f"{sorted(own)}: it was saved by another optimizer"
            )
        for key, values in own.items():
            found = torch.zeros_like(values)
            if key in saved:
                found = self.read(piece.name, key, piece.start, values.numel())
            piece.write(key, found)
        piece.set_numbers(self.numbers[piece.name])
