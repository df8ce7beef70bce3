"""What every reader gives: blocks of rows, and the records that were no rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from ..files import TooLong

_SAMPLED_PER_REASON = 20
_ROWS_TO_MEET_FIELDS = 1000  # rows after which a field that none of them had is an error


class Rows(NamedTuple):
    """A block of texts with the number of the record each came from (from 1, ascending)."""

    texts: list[str]
    records: np.ndarray  # int64
    labels: list[str | None] | None
    ids: list[str | None] | None


class Rejects:
    """The records of one task that were skipped: how many for which reason, and where the first
    of each stand. Their content is not kept: it may be personal."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.samples: list[dict[str, Any]] = []
        self.lines = 0  # read so far, so that the next byte range can number its own

    def add(self, path: Path | str, record: int, reason: str, detail: str = "") -> None:
        """Count one record, and keep its place when it is among the first of its reason."""
        self.counts[reason] += 1
        if self.counts[reason] <= _SAMPLED_PER_REASON:
            found = {"file": str(path), "record": record, "reason": reason}
            self.samples.append(found | ({"detail": detail[:200]} if detail else {}))

    def add_too_long(self, path: Path, line: TooLong) -> None:
        """Count a line that was passed over for its length."""
        self.add(path, line.number, "too_long_line", f"{line.size:,} bytes")
        self.lines = line.number


class FieldCheck:
    """Notices fields that the recipe names and no row of a file has."""

    def __init__(self, path: Path | str, fields: Iterable[str]) -> None:
        self._path = path
        self._unmet = set(fields)
        self._there: set[str] = set()
        self._rows = 0

    @property
    def pending(self) -> bool:
        """Whether rows still have to be shown to `see`."""
        return bool(self._unmet)

    def see(self, names: Iterable[str]) -> None:
        """The field names of one row. DataError when a field is missing from many rows."""
        there = set(names)
        self._there |= there
        self._unmet -= there
        self._rows += 1
        if self._rows >= _ROWS_TO_MEET_FIELDS:
            self.end()

    def end(self) -> None:
        """No rows follow. DataError that lists the fields there are when one was never met."""
        if self._unmet and self._rows:
            there = ", ".join(sorted(map(str, self._there))) or "none"
            missing = " or ".join(repr(field) for field in sorted(self._unmet))
            raise DataError(f"{self._path}: no field {missing}; the fields there are: {there}")
        self._unmet = set()


def as_text(value: Any) -> str | None:
    """A label or an id as text: 5.0 and 5 are the same label."""
    if value is None:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON escapes can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
