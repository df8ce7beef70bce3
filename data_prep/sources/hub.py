"""Whatever the `datasets` library opens: a local folder, or a dataset of the hub, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..recipe.sources import HubSource
from .rows import FieldCheck, Rejects, Rows
from .tables import blocks, select


def read_dataset(source: HubSource, rejects: Rejects) -> Iterator[Rows]:
    """The rows of a dataset; a row's record is its number in the split."""
    numbered = enumerate(_rows(source), 1)
    check = FieldCheck(source.path, source.fields)
    for block in blocks(numbered, source):
        if check.pending:
            for _, row in block:
                check.see(row)
        yield select(source.path, source, block, rejects)
    check.end()


def local_files(source: HubSource) -> list[Path]:
    """The files of a local dataset in sorted order; none for a dataset of the hub."""
    folder = Path(source.path)
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


def _rows(source: HubSource) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        yield from datasets.load_dataset(
            source.path, source.name, split=source.split, streaming=source.streaming
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "correct path, name and split of the source, or see that the hub can be reached"
        raise DataError(f"dataset {source.path}: cannot be read ({first}); {hint}") from None
