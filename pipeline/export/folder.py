"""Whether a folder holds a model that `transformers` can load, and its tokenizer, told in words."""

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


def check_vocabulary(folder: Path | str, known: int, wanted: int, exact: bool) -> None:
    """DataError when a tokenizer of `wanted` ids cannot be that of a model of `known`.

    A Transformer's vocabulary may be padded beyond its tokenizer's; bytes with another offset give
    other text, so there the numbers must be the same.
    """
    if wanted > known or (exact and wanted != known):
        raise DataError(
            f"{folder}: a model of {known} ids with a tokenizer of {wanted}: it is another model's "
            "tokenizer; export the run again with `python -m pipeline export RECIPE`"
        )
