"""Review files for benchmarks: real texts as Amazon JSON lines, repeated under fresh ids."""

from __future__ import annotations

import glob
import gzip
import json
from itertools import count
from pathlib import Path
from typing import Any

from data_prep.files import read_whole

_SAMPLE = Path(__file__).parents[1] / "data_prep" / "sample" / "fine_foods_*.jsonl.xz"


def review_rows(pattern: str | None) -> list[dict[str, Any]]:
    """Distinct rows with a reviewText: of the JSON lines that `pattern` names, or the embedded
    reviews in the form of 2014, with stand-ins for the fields that they lack."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(glob.glob(pattern or str(_SAMPLE))):
        for line in read_whole(Path(path)).split(b"\n"):
            row = json.loads(line) if line.strip() else {}
            if text := row.get("reviewText"):
                rows[text] = row if pattern else _form_of_2014(row, len(rows))
    return list(rows.values())


def _form_of_2014(row: dict[str, Any], number: int) -> dict[str, Any]:
    return {
        "reviewerID": f"A{number:013d}",
        "asin": row["asin"],
        "reviewerName": "a reader of this file",
        "helpful": [0, 0],
        "reviewText": row["reviewText"],
        "overall": 5.0 if row["score"] == "great" else 3.0,
        "summary": row["reviewText"][:30],
        "unixReviewTime": 1350000000 + number,
        "reviewTime": "10 12, 2012",
    }


def write_reviews(path: Path, rows: list[dict[str, Any]], size: int) -> int:
    """JSON lines of about `size` bytes, packed when the name ends in .gz; the size unpacked."""
    heads = [json.dumps({k: v for k, v in row.items() if k != "reviewerID"})[1:] for row in rows]
    lines = [head.encode() + b"\n" for head in heads]
    written = 0
    with gzip.open(path, "wb") if path.suffix == ".gz" else open(path, "wb") as stream:
        for number in count():
            block = b"".join(b'{"reviewerID": "%d-%d", ' % (number, i) + line
                             for i, line in enumerate(lines))  # fmt: skip
            left = size - written
            if len(block) > left:
                block = block[: block.find(b"\n", left) + 1] or block
            stream.write(block)
            written += len(block)
            if written >= size:
                return written
    raise AssertionError("unreachable")
