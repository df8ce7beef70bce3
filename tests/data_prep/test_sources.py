from __future__ import annotations

import gzip
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from pydantic import TypeAdapter

from data_prep.errors import DataError
from data_prep.recipe.data import Source
from data_prep.sources import Document, read_documents


def source(kind: str, path: Path, **keys: Any) -> Source:
    if kind != "text":
        keys.setdefault("text_field", "text")
    return TypeAdapter(Source).validate_python({"kind": kind, "path": str(path), **keys})


def texts(of: Source) -> list[str]:
    return [document.text for document in read_documents(of)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_jsonl_rows_without_text_are_counted(tmp_path: Path, suffix: str) -> None:
    rows = '\ufeff{"text": "é"}\n\n{"id": 1}\n{"text": null}\n{"text": ""}\n{"text": "\\ud800"}\n'
    packs: dict[str, Any] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packs[suffix]((rows + '{"text": "z"}').encode()))
    counts: Counter[str] = Counter()
    found = list(read_documents(source("jsonl", path), counts))
    assert found == [Document("é", str(path), 1), Document("z", str(path), 7)]
    assert counts == {"rows": 6, "no_text": 3, "not_unicode": 1}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        (b'{"text": "a"}\n[1]\n', "line 2: found a JSON list, expected an object"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: byte 0xff is not UTF-8"),
        (b'{"text": 5}\n', "line 1: 'text' holds 5 .int., expected text"),
        (b'{"txt": "a", "id": 1}\n', "no field 'text'; the fields there are: id, txt"),
        (b'{"txt": "a"}\n' * 1000 + b"not reached", "no field 'text'"),
    ],
)
def test_bad_jsonl(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=words) as caught:
        texts(source("jsonl", path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_damaged_archives(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / ("a.jsonl" + (".gz" if pack is gzip.compress else ".xz"))
    whole = pack(b"".join(b'{"text": "%d"}\n' % i for i in range(20000)))
    for raw in (whole[: len(whole) // 2], b"neither", b"\x1f\x8b\x08\x00" + bytes(20)):
        path.write_bytes(raw)
        with pytest.raises(DataError, match="damaged or cut short after line") as caught:
            texts(source("jsonl", path))
        assert str(path) in str(caught.value)


def test_missing_files_and_sorted_globs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file at .*correct data.sources"):
        texts(source("jsonl", tmp_path / "*.jsonl"))
    for name in "ba":
        (tmp_path / f"{name}.txt").write_text(name)
    assert texts(source("text", tmp_path / "*.txt", document="file")) == ["a", "b"]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id;text\n1;"two\nlines; one"\n2;\n3\n\n4;' + "x" * 200_000 + "\n")
    counts: Counter[str] = Counter()
    found = list(read_documents(source("csv", path, delimiter=";"), counts))
    assert [(d.text[:14], d.record) for d in found] == [("two\nlines; one", 3), ("x" * 14, 7)]
    assert counts == {"rows": 4, "no_text": 2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,txt\n1,a\n", "no field 'text'; the fields there are: id, txt"),
        ("", "the fields there are: none"),
        ("id,text\n1,a,b\n", "line 2: 3 fields under a header of 2"),
        ('id,text\n1,"a\n', "line 2: not CSV"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        texts(source("csv", path))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("line", [("a", 1), ("b", 2), ("c", 5)]),
        ("paragraph", [("a\nb\n", 1), ("c", 5)]),
        ("file", [("a\nb\n\n \nc", 1)]),
    ],
)
def test_text(tmp_path: Path, document: str, expected: list[tuple[str, int]]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\nb\n\n \nc")
    found = read_documents(source("text", path, document=document))
    assert [(d.text, d.record) for d in found if d.text.strip()] == expected


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": ["a", None, "", "b"], "n": [1, 2, 3, 4]}), path)
    counts: Counter[str] = Counter()
    found = list(read_documents(source("parquet", path), counts))
    assert [(d.text, d.record) for d in found] == [("a", 1), ("b", 4)]
    assert counts == {"rows": 4, "no_text": 2}
    with pytest.raises(DataError, match="no field 'x'; the fields there are: n, text"):
        texts(source("parquet", path, text_field="x"))
    with pytest.raises(DataError, match="column 'n' holds int64, expected text"):
        texts(source("parquet", path, text_field="n"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        texts(source("parquet", path))
