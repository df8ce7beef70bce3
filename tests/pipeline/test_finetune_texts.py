"""Labelled text from every kind of file, and the one message for each that cannot be used."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from data_prep.errors import DataError
from data_prep.recipe.data import CleanConfig
from pipeline.finetune.texts import read_texts
from pipeline.recipe.finetune import FinetuneConfig

ROWS = [(f"text {n} is here", "good" if n % 3 else "bad") for n in range(30)]


def write(path: Path, rows: list[tuple[str, Any]] = ROWS) -> Path:
    """Rows of text and label as the kind of file that the name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        mark = "," if name.endswith(".csv") else "\t"
        content = "".join(f"{a}{mark}{b}\n" for a, b in [("text", "label"), *rows])
    elif name.endswith(".parquet"):
        texts, labels = zip(*rows, strict=True)
        parquet.write_table(pa.table({"text": list(texts), "label": list(labels)}), path)
        return path
    else:
        content = "".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def config(path: Path, **changes: Any) -> FinetuneConfig:
    given = {"train": str(path), "test_share": 0.2, "validation_share": 0.2}
    return FinetuneConfig(**(given | changes))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.csv.gz"])
def test_every_kind_of_file_gives_the_same_texts(tmp_path: Path, name: str) -> None:
    found = read_texts(config(write(tmp_path / name)))
    assert found.names == ["bad", "good"]
    assert [len(part.texts) for part in found[:3]] == [19, 5, 6]
    told = dict(ROWS)
    for part in found[:3]:
        assert [found.names[label] for label in part.labels] == [told[t] for t in part.texts]
        assert set(part.labels) == {0, 1}  # every part has both
    assert sorted(t for part in found[:3] for t in part.texts) == sorted(told)


def test_a_folder_is_a_dataset_whose_splits_are_the_parts(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", ROWS[:20])
    write(folder / "test.jsonl", ROWS[20:])
    found = read_texts(config(folder, test=str(folder)))
    assert found.test.texts == [text for text, _ in ROWS[20:]]
    assert len(found.train.texts) + len(found.validation.texts) == 20


def test_named_files_are_the_parts(tmp_path: Path) -> None:
    train, other = write(tmp_path / "a.csv", ROWS[:20]), write(tmp_path / "b.tsv", ROWS[20:])
    found = read_texts(config(train, validation=str(other), test=str(other)))
    assert found.train.texts == [text for text, _ in ROWS[:20]]
    assert found.validation.texts == found.test.texts == [text for text, _ in ROWS[20:]]


def test_numbers_are_in_their_order_and_have_the_names_they_are_given(tmp_path: Path) -> None:
    rows = [(f"text {n}", n % 11) for n in range(66)]
    found = read_texts(config(write(tmp_path / "a.jsonl", rows), label_names={"10": "ten"}))
    assert found.names == [*map(str, range(10)), "ten"]


def test_max_texts_is_a_seeded_choice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv")
    first, again, other = (
        read_texts(config(path, max_texts=15, seed=seed)).train.texts for seed in (1, 1, 2)
    )
    assert len(first) == 9 and first == again != other


def test_fields_can_be_joined_and_texts_cleaned(tmp_path: Path) -> None:
    rows = [
        {"title": f"Tea {n}", "body": "a &amp;  b", "label": "x" if n % 2 else "y"}
        for n in range(20)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = config(path, text_field=["title", "body"], join_with=": ")
    assert read_texts(section).train.texts[0].endswith(": a &amp;  b")
    cleaned = section.model_copy(update={"clean": CleanConfig(profile="openai")})
    assert "a & " in read_texts(cleaned).train.texts[0]


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        ([("a", "good")] * 20, {}, r"20 texts, all labelled 'good'.*two classes or more"),
        (ROWS, {"text_field": "body"}, "no field 'body'; the fields there are: label, text"),
        (ROWS, {"label_field": "stars"}, "no field 'stars'; the fields there are: label, text"),
        (ROWS[:3], {}, "cannot hold out a test set"),
        ([*ROWS[:8], ("x", "")], {}, r"1 of 9 rows cannot be used \(no_label 1\).*record 10"),
        ([*ROWS, ("x", "once")], {}, "cannot hold out a test set"),
    ],
)
def test_what_cannot_be_used_is_told(
    tmp_path: Path, rows: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read_texts(config(write(tmp_path / "a.csv", rows), **changes))


def test_an_empty_test_file_and_a_label_nobody_learnt(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv")
    empty = write(tmp_path / "b.csv", [])
    with pytest.raises(DataError, match="finetune.test: .*b.csv holds no text"):
        read_texts(config(train, test=str(empty)))
    strange = write(tmp_path / "c.csv", [("a", "good"), ("b", "great")])
    with pytest.raises(DataError, match="c.csv: label 'great' occurs in no text of .*a.csv"):
        read_texts(config(train, test=str(strange)))


def test_missing_files_and_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file at .*none.csv"):
        read_texts(config(tmp_path / "none.csv"))
    with pytest.raises(DataError, match=r"a.xlsx ends in none of .csv, .tsv"):
        read_texts(config(write(tmp_path / "a.xlsx")))


def test_a_few_bad_rows_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [*ROWS, ("", "good")])
    assert read_texts(config(path, max_bad_share=0.1)).skipped == {"no_text": 1}
