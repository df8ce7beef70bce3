"""Tables, text, folders of files, byte ranges and weights."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from documents import documents
from source_rows import Row, read, source, texts

from data_prep import files, sources
from data_prep.errors import DataError
from data_prep.prepare import prepare_tree
from data_prep.recipe.sources import Source
from data_prep.sources import Rejects, plan_tasks, read_rows, source_files


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [
        "id;text;stars",
        '1;"two\r\nlines; ""one""\n";5',
        "2;;4",
        "3",
        "",
        f"4;{'x' * 200_000};",
        "5;b;5;6",
        '6;"b" c;5',
        "7;a\rb;5",
        "8;\x00é;5",
    ]
    path.write_bytes("\n".join(rows).encode() + b'\n9;\xff;5\n10;good;5\n11;"open;5\n')
    found, bad = read(source("csv", path, delimiter=";", label_field="stars", id_field="id"))
    assert [(r.text[:20], *r[1:]) for r in found] == [
        ('two\r\nlines; "one"\n', 4, "5", "1"),
        ("x" * 20, 8, "", "4"),
        ("\x00é", 12, "5", "8"),
        ("good", 14, "5", "10"),
    ]
    assert bad == [
        (5, "no_text"), (6, "no_text"), (9, "bad_csv"), (10, "bad_csv"), (11, "bad_csv"),
        (13, "not_utf8"), (15, "bad_csv"),
    ]  # fmt: skip


def test_quotes_may_be_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('id\ttext\n1\t"Great product\n2\tIt broke\n3\tNever again"\n')
    found, bad = read(source("csv", path, delimiter="\t", id_field="id", quoted=False))
    assert [(r.text, r.id) for r in found] == [
        ('"Great product', "1"), ("It broke", "2"), ('Never again"', "3")
    ]  # fmt: skip
    assert not bad


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_of_long_texts_come_in_small_blocks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    rows = [f"{number} {'x' * 2**20}" for number in range(20)]
    if kind == "csv":
        path.write_text("text\n" + "".join(f"{row}\n" for row in rows))
    else:
        parquet.write_table(arrow.table({"text": rows}), path, use_dictionary=False)
    whole = source(kind, path)
    (task,) = plan_tasks([whole])
    found = [block.texts for block in read_rows(task, whole, Rejects())]
    assert [text for block in found for text in block] == rows
    assert max(map(len, found)) <= 3


def test_tsv_and_joined_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('title\ttext\tid\n"A, b"\tc\t1\n\td\t2\ne\t\t3\n')
    found, _ = read(source("csv", path, delimiter="\t", text_field=["title", "text"]))
    assert [row.text for row in found] == ["A, b\nc", "d", "e"]


@pytest.mark.parametrize("field", ["label_field", "id_field"])
def test_bad_bytes_beside_the_text(recipe: Path, field: str) -> None:
    Path("a.csv").write_bytes(
        b"text,v\n" + b"".join(b"text %d,1\n" % n for n in range(200)) + b"another,\xff\n"
    )
    tree = tree_over({"kind": "csv", "path": "a.csv", "text_field": "text", field: "v"})
    counts = prepare_tree(tree, workers=1)["counts"]
    assert counts["rejected"] == {"not_utf8": 1} and counts["records"]["read"] == 201


@pytest.mark.parametrize(
    ("document", "expected", "bad"),
    [
        ("line", [("a", 1), ("b\u2028", 2), (" ", 4), ("d", 7)], [(6, "not_utf8")]),
        ("paragraph", [("a\nb\u2028", 1), ("d", 7)], [(6, "not_utf8")]),
        ("file", [], [(1, "not_utf8")]),
    ],
)
def test_text(
    tmp_path: Path, document: str, expected: list[tuple[str, int]], bad: list[Any]
) -> None:
    path = tmp_path / "a.txt"
    blank = "\n" if document == "paragraph" else ""
    path.write_bytes("a\r\nb\u2028\n\n \n\n".encode() + b"c\xff\n" + f"{blank}d".encode())
    found, rejected = read(source("text", path, document=document))
    if document == "paragraph":
        expected = [(text, number + (number > 6)) for text, number in expected]
    assert [(row.text, row.record) for row in found] == expected
    assert rejected == bad


def test_a_file_and_many_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\ufeff\n a\r\n\r\nb \n\n", newline="")
    assert texts(source("text", path, document="file")) == [("\n a\r\n\r\nb \n\n", 1)]
    path.write_text("".join(f"{n}\n{n}\n\n\n" for n in range(1000)))
    expected = [(f"{n}\n{n}", 4 * n + 1) for n in range(1000)]
    assert texts(source("text", path, document="paragraph")) == expected


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {"text": ["a", None, "", "b"] * 600, "n": [1.0, 2.5, None, 4] * 600,
               "nested": [{"text": "x"}] * 2400}  # fmt: skip
    parquet.write_table(arrow.table(columns), path, row_group_size=1000)
    found, bad = read(source("parquet", path, label_field="n"))
    assert found[:3] == [Row("a", 1, "1"), Row("b", 4, "4"), Row("a", 5, "1")]
    assert (len(found), found[-1]) == (1200, Row("b", 2400, "4"))
    assert bad == [(n, "no_text") for n in range(41) if n % 4 in (2, 3)]
    for field in ("n", "nested"):
        rows, bad = read(source("parquet", path, text_field=field))
        assert rows == [] and {reason for _, reason in bad} <= {"not_text", "no_text"}
    with pytest.raises(DataError, match="no field 'x'; the fields there are: n, nested, text"):
        read(source("parquet", path, text_field="x"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="a.parquet: not a readable Parquet file"):
        read(source("parquet", path))
    path.write_bytes(b"")
    with pytest.raises(DataError, match="a.parquet: not a readable Parquet file"):
        read(source("parquet", path))


@pytest.mark.parametrize("streaming", [True, False])
def test_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"text": f"text {n}" if n % 4 else None, "stars": n} for n in range(2000)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    of = source("datasets", folder, label_field="stars", streaming=streaming)
    assert source_files(of) == [folder / "train.jsonl"]
    found, bad = read(of)
    assert found == [Row(f"text {n}", n + 1, str(n)) for n in range(2000) if n % 4]
    assert bad == [(n, "no_text") for n in range(1, 81, 4)]
    with pytest.raises(DataError, match="no field 'body'; the fields there are: stars, text"):
        read(source("datasets", folder, text_field="body", streaming=streaming))
    with pytest.raises(DataError, match="dataset .*: cannot be read .*correct path, name and"):
        read(source("datasets", folder, split="test", streaming=streaming))


def test_files_are_sorted_and_each_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.txt", "a.txt", "in/c.txt", "d[1].txt"):
        (tmp_path / name).write_text(name)

    def found(*patterns: str) -> list[str]:
        paths = [str(tmp_path / pattern) for pattern in patterns]
        return [path.name for path in source_files(source("text", paths, document="file"))]

    assert found("*.txt") == ["a.txt", "b.txt", "d[1].txt"]
    assert found("b.txt", "?.txt", "in/*") == ["a.txt", "b.txt", "c.txt"]
    assert found("**/*.txt") == ["a.txt", "b.txt", "d[1].txt", "c.txt"]
    assert found("d[1].txt") == ["d[1].txt"]


def test_a_file_whose_name_is_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")).write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="not UTF-8; rename it"):
        read(source("jsonl", [str(tmp_path / "*.jsonl")]))


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("*.jsonl", "no file at .*[*].jsonl .*correct data.sources"),
        ("in", "in is a folder, expected a file or a glob"),
        ("i*", "in is a folder, expected a file or a glob"),
        ("link", "link"),
    ],
)
def test_no_files(tmp_path: Path, pattern: str, words: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(DataError, match=words):
        read(source("jsonl", [str(tmp_path / pattern)]))


def tree_over(*of: dict[str, Any], **data: Any) -> dict[str, Any]:
    shared = {
        "folder": "prepared",
        "sources": list(of),
        "clean": {"profile": "none"},
        "duplicates": {"exact": False},
        "split": {"validation": 0.2, "test": 0.1},
    }
    return {"data": shared | data, "tokenizer": {"kind": "bytes"}}


DIRECTLY: dict[str, Any] = {"order": "source"}


@pytest.mark.parametrize("data", [{"shard_tokens": 500}, DIRECTLY, DIRECTLY | {"shard_tokens": 90}])
@pytest.mark.parametrize("kind", ["jsonl", "text"])
def test_ranges_name_the_lines_they_were(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, kind: str, data: dict[str, Any]
) -> None:
    """However files are cut, the index of documents names the line of every document."""
    monkeypatch.setattr(sources, "TASK_BYTES", 150)
    Path("in").mkdir()
    expected = set()
    for name, count in (("b", 60), ("a", 30), ("c", 1), ("d", 0)):
        lines = []
        for number in range(1, count + 1):
            text = f"{name} {'é' * (number * 7 % 40)}{number}"
            blank = number % 5 == 0
            row = json.dumps({"text": text, "n": number, "id": name}, ensure_ascii=False)
            lines.append("" if blank else row if kind == "jsonl" else text)
            labels = (str(number), name) if kind == "jsonl" else (None, None)
            expected |= set() if blank else {(f"in/{name}", number, *labels, text)}
        Path("in", name).write_text("\n".join(lines) + "\n" * (name == "a"))
    fields = {"text_field": "text", "label_field": "n", "id_field": "id"}
    of = {"kind": kind, "path": "in/*"} | (fields if kind == "jsonl" else {"document": "line"})
    assert len(plan_tasks([source(**of)])) > 15
    manifest = prepare_tree(tree_over(of, **data), workers=1)
    found = [tuple(document)[1:] for document in documents("prepared")]
    assert len(found) == len(expected) and set(found) == expected
    assert len(manifest["splits"]["train"]["shards"]) > 1
    if "order" in data:
        places = [(d.split, d.file, d.record) for d in documents("prepared")]
        splits = ["train", "validation", "test"]
        assert places == sorted(places, key=lambda place: (splits.index(place[0]), *place[1:]))


@pytest.mark.parametrize("kind", ["jsonl", "text"])
@pytest.mark.parametrize("data", [{}, DIRECTLY])
def test_bad_lines_in_ranges(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, kind: str, data: dict[str, Any]
) -> None:
    """Rejected records are named by their line in the file too, and lines after them still."""
    monkeypatch.setattr(sources, "TASK_BYTES", 400)
    monkeypatch.setattr(files, "BLOCK_BYTES", 16)
    monkeypatch.setattr(files, "LONGEST_LINE", 128)
    good = [f"line {number} of some length" for number in range(1, 301)]
    reasons = {n: "not_utf8" if n % 2 else "too_long_line" for n in range(1, 301, 17)}
    raws = [json.dumps({"text": text}).encode() if kind == "jsonl" else text.encode()
            for text in good]  # fmt: skip
    for number, reason in reasons.items():
        raws[number - 1] = b'{"text": "\xff"}' if reason == "not_utf8" else b"x" * 300
    Path("a").write_bytes(b"\n".join(raws))
    keys = {"text_field": "text"} if kind == "jsonl" else {"document": "line"}
    tree = tree_over({"kind": kind, "path": "a", **keys}, max_bad_share=0.5, **data)
    assert len(plan_tasks([source(kind, "a", **keys)])) > 15
    manifest = prepare_tree(tree, workers=1)
    assert manifest["counts"]["rejected"] == Counter(reasons.values())
    expected = {(n, text) for n, text in enumerate(good, 1) if n not in reasons}
    assert {(d.record, d.text) for d in documents("prepared")} == expected
    rows = map(json.loads, Path("prepared/rejects.jsonl").read_text().splitlines())
    assert {row["record"]: row["reason"] for row in rows} == reasons


@pytest.mark.parametrize("order", ["shuffled", "source"])
def test_weights(recipe: Path, order: str) -> None:
    weights = {"a": 1, "b": 3, "c": 0.5, "d": 2.25}
    for name in weights:
        Path(name).write_text("".join(f"{name} {number}\n" for number in range(400)))
    of = [{"kind": "text", "document": "line", "path": n, "weight": w} for n, w in weights.items()]
    manifest = prepare_tree(tree_over(*of, order=order, shard_tokens=3000), workers=1)
    found = documents("prepared")
    assert all(d.text == f"{d.file} {d.record - 1}" for d in found)
    held_out = [(d.file, d.record) for d in found if d.split != "train"]
    assert len(held_out) == len(set(held_out)) > 400
    for name, weight in weights.items():
        times = Counter(d.record for d in found if d.file == name and d.split == "train")
        possible = 400 - sum(file == name for file, _ in held_out)
        assert set(times.values()) <= {int(weight), int(weight) + (weight % 1 > 0)}
        assert abs(times.total() - weight * possible) <= (60 if weight % 1 else 0)
    counts = manifest["counts"]
    assert counts["dropped"] == {"weight": 400 - sum(d.file == "c" for d in found)}
    assert counts["records"]["repeated"] == len(found) - len({(d.file, d.record) for d in found})


def test_tasks_of_several_sources_count_all_files(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("text\n")
    of: Sequence[Source] = [
        source("text", tmp_path / "*", document="line"),
        source("csv", tmp_path / "a"),
    ]
    places = [(task.source, task.file, Path(task.path).name) for task in plan_tasks(of)]
    assert places == [(0, 0, "a"), (0, 1, "b"), (1, 2, "a")]
