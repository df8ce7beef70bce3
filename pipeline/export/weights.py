"""Weights of a checkpoint: fp32 tensors by parameter name, whatever ZeRO stage saved them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from data_prep.errors import DataError
from pipeline.train.piece_files import SavedPieces


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """fp32 CPU tensors by name in the trained module, tied weights under each of their names.

    `checkpoint` is a folder `checkpoints/global_stepN`. DataError when it is not a checkpoint or a
    file is missing or damaged.
    """
    if not (checkpoint / "manifest.json").is_file():
        hint = "it is not a finished checkpoint: name another in export.checkpoint"
        raise DataError(f"{checkpoint} holds no manifest.json; {hint}")
    saved = SavedPieces.open(checkpoint)
    shared = [name for name in saved.shapes if "/" not in name]  # the rest is of single ranks
    weights = {name: saved.whole(name).float() for name in shared}
    return weights | {name: weights[first] for name, first in saved.about["tied"].items()}
