"""Sentiment: finds what is there, finds nothing where nothing is, refuses what cannot be judged."""

from __future__ import annotations

import gzip
import json
import lzma
import random
from pathlib import Path

import pytest

from data_prep.errors import DataError
from data_prep.recipe.data import CleanConfig
from pipeline.evaluate.labelled import read_labelled
from pipeline.evaluate.model import LanguageModel
from pipeline.evaluate.sentiment import sentiment
from pipeline.recipe.evaluation import SentimentConfig
from tests.pipeline.test_evaluate import exported

WORDS = "the tea cup of warm milk was here and again very".split()


def write_rated(path: Path, rows: list[tuple[str, object]]) -> SentimentConfig:
    lines = "".join(json.dumps({"text": t, "valence": s}) + "\n" for t, s in rows).encode()
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "wb") as out:  # type: ignore[operator]
        out.write(lines)
    return SentimentConfig(path=str(path), bootstrap_samples=200)


def sentence(rng: random.Random, last: str) -> str:
    return " ".join([*rng.choices(WORDS, k=rng.randint(2, 6)), last])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel.load(
        exported(tmp_path_factory.mktemp("run"), "mlstm").export_folder, "cpu"
    )


def test_separable_texts_are_told_apart(model: LanguageModel, tmp_path: Path) -> None:
    rng = random.Random(0)
    rows: list[tuple[str, object]] = [(sentence(rng, "great"), 0.9) for _ in range(120)]
    rows += [(sentence(rng, "awful"), -0.9) for _ in range(80)]
    rows += [(sentence(rng, "table"), 0.1) for _ in range(50)]  # in the middle: left out
    rng.shuffle(rows)
    section = write_rated(tmp_path / "rated.jsonl.xz", rows)
    found = sentiment(model, section, CleanConfig(), seed=1)
    assert found["texts"] == 200
    assert found["positive_share"] == pytest.approx(0.6)
    assert found["folds"] == 5
    assert found["accuracy"] > 0.9
    assert found["tfidf_accuracy"] > 0.9
    assert found["majority_accuracy"] == pytest.approx(0.6)
    low, high = found["interval"]
    assert low <= found["accuracy"] <= high
    assert 0 < found["nonzero_weights"] < found["features"] == 24
    assert {k: v for k, v in sentiment(model, section, CleanConfig(), seed=1).items()
            if k != "texts_per_second"} == {
        k: v for k, v in found.items() if k != "texts_per_second"}  # fmt: skip


def test_random_ratings_give_chance(model: LanguageModel, tmp_path: Path) -> None:
    rng = random.Random(0)
    rows: list[tuple[str, object]] = [
        (sentence(rng, rng.choice(["great", "awful"])), rng.choice([-1, 1])) for _ in range(400)
    ]
    section = write_rated(tmp_path / "rated.jsonl", rows)
    low, high = sentiment(model, section, CleanConfig(), seed=1)["interval"]
    assert low < 0.5 < high


def test_one_class_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    rng = random.Random(0)
    section = write_rated(tmp_path / "r.jsonl.gz", [(sentence(rng, "great"), 1) for _ in range(50)])
    with pytest.raises(DataError, match="0 negative and 50 positive"):
        sentiment(model, section, CleanConfig(), seed=1)


def test_a_rating_that_is_no_number_is_named(model: LanguageModel, tmp_path: Path) -> None:
    section = write_rated(tmp_path / "r.jsonl", [("fine", 1), ("fine", "high")])
    with pytest.raises(DataError, match="line 2.*'high', expected a number"):
        sentiment(model, section, CleanConfig(), seed=1)


def test_a_missing_field_lists_those_there_are(tmp_path: Path) -> None:
    write_rated(tmp_path / "r.jsonl", [("fine", 1)])
    with pytest.raises(DataError, match="no field 'stars'; the fields there are: text, valence"):
        read_labelled(tmp_path / "r.jsonl", "text", "stars", CleanConfig())


def test_csv_and_json_lines_read_alike(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(
        'label,text\r\nyes,"two\n\nlines, ""quoted"""\r\nno,<b>bold</b>\r\n'
    )
    cleaning = CleanConfig(strip_tags=True, collapse_whitespace=True)
    found = read_labelled(tmp_path / "r.csv", "text", "label", cleaning)
    assert [row[:2] for row in found] == [('two lines, "quoted"', "yes"), ("bold", "no")]
    rows = [
        {"text": 'two\n\nlines, "quoted"', "label": "yes"},
        {"text": "<b>bold</b>", "label": "no"},
    ]
    with gzip.open(tmp_path / "r.jsonl.gz", "wt") as out:
        out.write("\n".join(json.dumps(row) for row in rows))
    again = read_labelled(tmp_path / "r.jsonl.gz", "text", "label", cleaning)
    assert [row[:2] for row in again] == [row[:2] for row in found]
    with pytest.raises(DataError, match="read from .csv or .jsonl"):
        (tmp_path / "r.tsv").write_text("a\tb\n")
        read_labelled(tmp_path / "r.tsv", "a", "b", CleanConfig())
