"""NumPy and Python to Arrow columns and back. What `pyarrow.array` and `to_numpy` do, which import
pandas where it is installed: a third of a second in every process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as arrow

from .errors import DataError


def numbers(values: np.ndarray) -> Any:
    """The Arrow array of a vector, sharing its memory where that is in one piece."""
    buffer = arrow.py_buffer(np.ascontiguousarray(values))
    return arrow.Array.from_buffers(
        arrow.from_numpy_dtype(values.dtype), len(values), [None, buffer]
    )


def vector(column: Any) -> np.ndarray:
    """The numbers of an Arrow array without nulls, in its memory."""
    whole = np.frombuffer(column.buffers()[1], column.type.to_pandas_dtype())
    return whole[column.offset : column.offset + len(column)]


def slices(sizes: Sequence[int], most: int, together: int) -> Iterator[slice]:
    """Slices of consecutive items: each of at most `most`, and of the `together` bytes of their
    sizes or one item that alone has more."""
    first = held = 0
    for place, size in enumerate(sizes):
        if place > first and (place - first == most or held + size > together):
            yield slice(first, place)
            first, held = place, 0
        held += size
    if first < len(sizes):
        yield slice(first, len(sizes))


def binary(raws: Sequence[bytes]) -> Any:
    """An Arrow array of bytes. DataError when they are 2 GiB together or more."""
    ends = np.cumsum(np.fromiter(map(len, raws), np.int64, len(raws)))
    if len(ends) and ends[-1] >= 2**31:
        hint = "cut the document (kind text: piece_characters)"
        raise DataError(
            f"{ends[-1]:,} bytes of text in one piece, expected less than 2 GiB; {hint}"
        )
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    buffers = [None, arrow.py_buffer(offsets), arrow.py_buffer(b"".join(raws))]
    return arrow.Array.from_buffers(arrow.binary(), len(raws), buffers)


def strings(values: Sequence[str | None]) -> Any:
    """An Arrow array of strings, with nulls, of less than 2 GiB in all."""
    filled = binary([(value or "").encode() for value in values])
    there = np.fromiter((value is not None for value in values), bool, len(values))
    valid = None if there.all() else arrow.py_buffer(np.packbits(there, bitorder="little"))
    _, *buffers = filled.buffers()
    return arrow.Array.from_buffers(arrow.string(), len(values), [valid, *buffers])
