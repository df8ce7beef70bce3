"""JSON lines, and the ends, labels, ids and fields of lines of any kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import PACKS
from source_rows import Row, read, source, texts

from data_prep.errors import DataError
from data_prep.sources import Rejects, plan_tasks, read_rows

BOM = b"\xef\xbb\xbf"


# The published forms: 2014, 2018, and the Python literals of the first dumps.
REVIEWS = {
    "2014": b'{"reviewerID": "A1", "asin": "0439", "reviewerName": "J. M\\u00fcller", "helpful": '
    b'[2, 3], "reviewText": "Good &amp; loud.", "overall": 5.0, "summary": "Yes", '
    b'"unixReviewTime": 1252800000, "reviewTime": "09 13, 2009"}',
    "2018": b'{"overall": 5.0, "vote": "2", "verified": true, "reviewTime": "09 4, 2015", '
    b'"reviewerID": "A1", "asin": "0439", "style": {"Color:": " Black"}, "reviewerName": "J", '
    b'"reviewText": "Good &amp; loud.", "summary": "Yes", "unixReviewTime": 1441324800, '
    b'"image": ["https://images.example/1.jpg"]}',
    "literal": b"{'reviewerID': 'A1', 'asin': '0439', 'helpful': [2, 3], 'reviewText': 'Good &amp; "
    b"loud.', 'overall': 5.0, 'summary': \"Yes\", 'unixReviewTime': 1252800000}",
}


@pytest.mark.parametrize("suffix", ["", *PACKS])
@pytest.mark.parametrize("form", REVIEWS)
def test_amazon_reviews(tmp_path: Path, form: str, suffix: str) -> None:
    bare = REVIEWS["2018"].replace(b'"reviewText": "Good &amp; loud.", ', b"")
    raw = b"\n".join([REVIEWS[form], bare, REVIEWS[form].replace(b"5.0", b"1.0"), b""])
    path = tmp_path / f"reviews.json{suffix}"
    path.write_bytes(PACKS[suffix](raw) if suffix else raw)
    found, bad = read(
        source("jsonl", path, text_field="reviewText", label_field="overall", id_field="asin")
    )
    text = "Good &amp; loud."
    assert found == [Row(text, 1, "5", "0439"), Row(text, 3, "1", "0439")]
    assert bad == [(2, "no_text")]
    titled, bad = read(source("jsonl", path, text_field=["summary", "reviewText"]))
    assert [row.text for row in titled] == [f"Yes\n{text}", "Yes", f"Yes\n{text}"] and not bad


LINES: list[tuple[bytes, str, str | None]] = [
    # What is a row all the same, and its text:
    (b'{"text": "a", "n": NaN, "m": -Infinity}', "text", "a"),
    (b'{"text": "a", "text": "b"}', "text", "b"),
    (b'{"text": "a", "n": NaN, "text": "b"}', "text", "b"),
    ('{"text": "a\u2028b\u2029c\x85d"}'.encode(), "text", "a\u2028b\u2029c\x85d"),
    (b'{"text": "a\\u2028\\u000b\\u0000\\n"}', "text", "a\u2028\x0b\x00\n"),
    (b' \t{"text": "a"} \r', "text", "a"),
    (b'{"text": "\\ud83d\\ude00"}', "text", "\U0001f600"),
    (b'{"text": "a", "n": "\\ud800"}', "text", "a"),
    (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "text", "a"),
    (b'{"text": "a", "n": {"text": ["x", {}]}}', "text", "a"),
    (b"{'text': 'it\\'s', 'n': None, \"m\": \"\"}", "text", "it's"),
    (b" {u'text': u'caf\\xe9'}", "text", "caf\u00e9"),
    # What is none, and why:
    (b'{"text": "\xff"}', "not_utf8", None),
    (b'{"text": "\xed\xa0\x80"}', "not_utf8", None),
    ('{"text": "a"}'.encode("utf-16"), "not_utf8", None),
    (b"text", "not_json", None),
    (b'{"text": "a"', "not_json", None),
    (b'{"text": "a"},', "not_json", None),
    (b'{"text": "a"} {"text": "b"}', "not_json", None),
    (b'{"text": "a"}{"text": "b"}{"text": "c"}', "not_json", None),
    (b'{"text": "a\x01"}', "not_json", None),
    (b"[" * 100_000, "not_json", None),
    (b'{"text": "a", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not_json", None),
    (b"{'text': 'a', 'n': open('x')}", "not_json", None),
    (b"{'text': " + b"-" * 100_000 + b"1}", "not_json", None),
    (b"{'text': " + b"[" * 100_000 + b"1}", "not_json", None),
    (b"[1]", "not_object", None),
    (b'"text"', "not_object", None),
    (b"null", "not_object", None),
    (b"{'text'}", "not_object", None),
    (b'{"text": 5}', "not_text", None),
    (b'{"text": true}', "not_text", None),
    (b'{"text": {"text": "a"}}', "not_text", None),
    (b'{"text": ["a"]}', "not_text", None),
    (b"{'text': b'a'}", "not_text", None),
    (b'{"text": "a\\ud800"}', "not_unicode", None),
    (b'{"text": "\\udc00\\ud800"}', "not_unicode", None),
    (b'{"text": null}', "no_text", None),
    (b'{"text": ""}', "no_text", None),
    (b'{"n": 1}', "no_text", None),
    (b"{}", "no_text", None),
    (b" \t\r", "blank", None),
]


@pytest.mark.parametrize(("line", "reason", "text"), LINES, ids=lambda value: repr(value)[:32])
def test_a_line_among_others(tmp_path: Path, line: bytes, reason: str, text: str | None) -> None:
    """Of lines that are none only they are lost, and the others keep their numbers."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "first"}\n%b\n\n\r\n{"text": "last"}' % line)
    found, bad = read(source("jsonl", path))
    assert [(row.text, row.record) for row in found] == [
        ("first", 1),
        *([(text, 2)] if text else []),
        ("last", 5),
    ]
    assert bad == ([] if reason in ("text", "blank") else [(2, reason)])


def test_indented_json_is_rejected_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = json.dumps({"text": "a", "n": [1]}, indent=1)
    path.write_text(f'{row}\n{{"text": "b"}}\n')
    found, bad = read(source("jsonl", path))
    # `1` alone is JSON, though no object.
    assert [(r.text, r.record) for r in found] == [("b", 7)]
    assert [number for number, _ in bad] == [1, 2, 3, 4, 5, 6]
    # As many lines as objects, but neither of them on one.
    path.write_bytes(b'{"text":\n"a"}{"text": "b"}\n')
    found, bad = read(source("jsonl", path))
    assert (found, [number for number, _ in bad]) == ([], [1, 2])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "text"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("head", [b"", BOM])
@pytest.mark.parametrize("last", [True, False])
def test_ends_of_lines(tmp_path: Path, kind: str, end: str, head: bytes, last: bool) -> None:
    values = ["a", "b\u2028\x85b", "c\x0bc"]
    path, keys = tmp_path / "a", {"text": {"document": "line"}}.get(kind, {})
    lines = {
        "jsonl": [json.dumps({"text": value}, ensure_ascii=False) for value in values],
        "csv": ["text", *values],
        "text": values,
    }[kind]
    path.write_bytes(head + (end.join(lines) + end * last).encode())
    first = 2 if kind == "csv" else 1
    assert texts(source(kind, path, **keys)) == [(v, n) for n, v in enumerate(values, first)]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "text"])
@pytest.mark.parametrize("raw", [b"", BOM, b"\n", b"\n\r\n\n"])
def test_files_of_nothing(tmp_path: Path, kind: str, raw: bytes) -> None:
    path, keys = tmp_path / "a", {"text": {"document": "line"}}.get(kind, {})
    path.write_bytes(b"text\n" + raw if kind == "csv" and raw != BOM else raw)
    assert texts(source(kind, path, **keys)) == []


def test_labels_and_ids_are_text(tmp_path: Path) -> None:
    values = ["5.0", "4.5", "5", "true", "null", '"x"', '"é"', "NaN", "[1]", "{}", '"\\ud800"']
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "a", "v": {value}}}\n' for value in [*values, '"y"']))
    path.write_text(path.read_text() + '{"text": "no v"}\n')
    found, bad = read(source("jsonl", path, label_field="v", id_field="v"))
    assert all(row.label == row.id for row in found)
    labels = ["5", "4.5", "5", "True", None, "x", "é", "nan", "y", None]
    assert [row.label for row in found] == labels
    assert bad == [(9, "not_text"), (10, "not_text"), (11, "not_unicode")]


@pytest.mark.parametrize("join", ["\n", " -- ", ""])
def test_text_fields_are_joined(tmp_path: Path, join: str) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"b": "B", "a": "A", "c": 3}, {"a": "", "b": "B"}, {"a": "A", "b": None}, {"c": ""}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"a": "A", "b": 1}]))
    found, bad = read(source("jsonl", path, text_field=["a", "b", "a"], join_with=join))
    assert [r.text for r in found] == [join.join("ABA"), "B", join.join("AA")]
    assert bad == [(4, "no_text"), (5, "not_text")]


def test_rejects_keep_places_and_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = (
        b'{"text": "", "n": "secret"}\n{"secret": \n{"text": ["secret"]}\n{"text": "\xffsecret"}\n'
    )
    path.write_bytes(line * 50)
    rejects, of = Rejects(), source("jsonl", path)
    for task in plan_tasks([of]):
        list(read_rows(task, of, rejects))
    reasons = ["no_text", "not_json", "not_text", "not_utf8"]
    assert rejects.counts == dict.fromkeys(reasons, 50)
    for number, reason in enumerate(reasons, 1):
        places = [s["record"] for s in rejects.samples if s["reason"] == reason]
        assert places == list(range(number, 81, 4))
    assert all(sample["file"] == str(path) for sample in rejects.samples)
    assert "secret" not in json.dumps(rejects.samples)


@pytest.mark.parametrize(
    ("kind", "raw", "words"),
    [
        ("jsonl", b'{"txt": "a", "id": 1}\n[]\n', "no field 'text'; the fields there are: id, txt"),
        ("jsonl", b'{"txt": "a"}\n' * 1000 + b"not reached", "no field 'text'"),
        ("jsonl", b"{'txt': 'a', 1: 2}\n", "no field 'text'; the fields there are: "),
        ("csv", b"id,txt\n1,a\n", "no field 'text'; the fields there are: id, txt"),
        ("csv", b"\ntext\na\n", "no field 'text'; the fields there are: none"),
        ("csv", b'"te\xff\xffxt"\n1\n', "no field 'text'; the fields there are: "),
    ],
)
def test_fields_that_are_not_there(tmp_path: Path, kind: str, raw: bytes, words: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=words) as caught:
        read(source(kind, path))
    assert str(path) in str(caught.value)


def test_each_named_field_is_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rare = b'{"text": "a"}\n' * 900 + b'{"text": "a", "stars": 1}\n'
    path.write_bytes(rare)
    assert len(texts(source("jsonl", path, label_field="stars"))) == 901
    for keys in ({"label_field": "star"}, {"id_field": "star"}, {"text_field": ["text", "star"]}):
        with pytest.raises(DataError, match="no field 'star'; the fields there are: stars, text"):
            read(source("jsonl", path, **keys))
