"""The first rows of a Parquet file, text columns and others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.errors import DataError

_ROWS = 2000


def parquet_rows(path: Path) -> tuple[list[dict[str, Any]], float]:
    """Rows from the beginning, and how many times as many the file has. DataError if damaged."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path) as table:
            rows = next(table.iter_batches(batch_size=_ROWS), None)
            total = table.metadata.num_rows
    except (arrow.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({first})") from None
    if rows is None or not rows.num_rows:
        raise DataError(f"{path} has no rows; give a file that holds text")
    return rows.to_pylist(), total / rows.num_rows
