"""Whether a folder holds a model that `transformers` can load, told before it tries."""

from __future__ import annotations

from pathlib import Path

from data_prep.errors import DataError


def check_model_folder(folder: Path) -> None:
    """DataError when the folder is missing, is a checkpoint, or is no model; it names the command
    that makes one."""
    hint = "make an export with `python -m pipeline export RECIPE`"
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: {hint}")
    if (folder / "trainer.json").is_file() or any(folder.glob("global_step*")):
        raise DataError(f"{folder} holds a checkpoint, not an exported model: {hint}")
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} holds no config.json, so it is no exported model: {hint}")
