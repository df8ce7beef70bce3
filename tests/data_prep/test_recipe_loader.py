from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from data_prep.errors import RecipeError
from data_prep.recipe.data import DataConfig
from data_prep.recipe.loader import Section, describe, read_tree, validate
from data_prep.recipe.tokenizer import BytesTokenizerConfig, TokenizerConfig, validate_tokenizer
from data_prep.recipe.yaml import parse_yaml

SOURCE = {"kind": "jsonl", "path": "a", "text_field": "t"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text("data:\n  folder: f\n  sources:\n  - {path: a}\n  - {path: b}\nrun:\n")
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E6", 1e6), ("-2.5e+3", -2500.0), (".5", 0.5), ("3.", 3.0), ("7", 7),
        ("-12", -12), ("010", "010"), ("1:30", "1:30"), ("no", "no"), ("on", "on"),
        ("true", True), ("null", None), ("", None), ("2020-01-01", "2020-01-01"),
        (".inf", float("inf")), ("1_000", 1000), ("e5", "e5"), ("1e", "1e"),
    ],
)  # fmt: skip
def test_scalars_mean_what_they_look_like(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert (found, type(found)) == (value, type(value))


def test_overrides(path: Path) -> None:
    keys = ["data.sources.1.path=c=d", "optim.lr=1e-3", "batch={micro: 4}", "run.x.y=[1, 2]"]
    tree = read_tree(path, keys)
    assert tree["data"]["sources"] == [{"path": "a"}, {"path": "c=d"}]
    assert tree["optim"] == {"lr": 0.001}
    assert (tree["batch"], tree["run"]) == ({"micro": 4}, {"x": {"y": [1, 2]}})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optm.lr=1", "did you mean 'optim'"),
        ("data.sources.2.path=c", "a list of 2"),
        ("data.sources.x=c", "a list of 2"),
        ("data.folder.x=c", "'folder' holds 'f'"),
        ("data.folder", "expected key=value"),
        ("data..x=1", "expected key=value"),
        ("data.folder=[1", "not YAML"),
    ],
)
def test_bad_overrides(path: Path, override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read_tree(path, [override])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {}\ndta: {}\n", "unknown section 'dta'; did you mean 'data'"),
        ("zzzzzz: {}\n", "the sections are run, data"),
        ("data: {a: 1, a: 2}\n", "'a' is given twice, first on line 1"),
        ("data: [\n", "not valid YAML"),
        ("- 1\n", "expected sections"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words):
        read_tree(path)
    with pytest.raises(RecipeError, match="no such file"):
        read_tree(tmp_path / "absent.yaml")


def test_merge_keys_may_be_overridden() -> None:
    text = "base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\n"
    assert parse_yaml(text)["more"] == {"x": 1, "y": 3}


def message(value: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        validate(DataConfig, {"folder": "f", "sources": [SOURCE], **value}, "data")
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"sed": 1}, "data.sed: unknown key; did you mean 'seed'?"),
        ({"zzzzz": 1}, "data.zzzzz: unknown key; the keys are folder, sources"),
        ({"seed": "1"}, "data.seed: found '1' (str), expected a valid integer"),
        ({"seed": 1.5}, "data.seed: found 1.5 (float), expected a valid integer"),
        ({"clean": {"strip_tag": True}}, "data.clean.strip_tag: unknown key; did you mean"),
        ({"clean": {"strip_tags": "yes"}}, "data.clean.strip_tags: found 'yes' (str)"),
        ({"sources": [{**SOURCE, "kind": "jsnl"}]}, "data.sources.0: unknown kind 'jsnl'; expected "
         "kind: jsonl | csv | text | parquet | datasets; did you mean 'jsonl'?"),
        ({"sources": [{"path": "a"}]}, "data.sources.0: missing key 'kind'"),
        ({"sources": [{"kind": "csv", "path": "a"}]}, "data.sources.0.text_field: missing"),
        ({"sources": [SOURCE, {**SOURCE, "text_feld": "x"}]},
         "data.sources.1.text_feld: unknown key; did you mean 'text_field'?"),
        ({"split": {"validation": 0.6, "test": 0.5}}, "data.split: validation + test is 1.1"),
    ],
)  # fmt: skip
def test_each_mistake_is_named(value: dict[str, Any], words: str) -> None:
    assert words in message(value) and "\n" not in message(value)


def test_many_mistakes_make_one_message_of_bounded_length() -> None:
    text = message({f"key{i}": i for i in range(30)})
    assert text.startswith("data: 30 problems\n")
    assert text.count("unknown key") == 20 and text.endswith("and 10 more")


class Nested(Section):
    many: dict[str, tuple[DataConfig, ...]] = Field(default_factory=dict)
    either: int | str | None = None


def test_paths_through_mappings_tuples_and_plain_unions() -> None:
    good = validate(Nested, {"many": {"a": [{"folder": "f", "sources": [SOURCE]}]}}, "x")
    assert isinstance(good.many["a"], tuple)
    with pytest.raises(RecipeError, match=r"x.many.a.1.folder: missing") as caught:
        bad = {"sources": [SOURCE]}
        validate(Nested, {"many": {"a": [{**bad, "folder": "f"}, bad]}, "either": 1.5}, "x")
    assert "x.either: found 1.5 (float), expected a valid integer" in str(caught.value)


def test_tokenizer_union() -> None:
    assert isinstance(validate_tokenizer({"kind": "bytes"}), BytesTokenizerConfig)
    with pytest.raises(RecipeError, match="did you mean 'bytes'"):
        validate_tokenizer({"kind": "byte"})
    with pytest.raises(RecipeError, match="tokenizer.vocab_size: found 3"):
        validate_tokenizer({"kind": "bpe", "vocab_size": 3})
    with pytest.raises(RecipeError, match="tokenizer.end_of_document: found 'the'"):
        validate_tokenizer({"kind": "bpe", "end_of_document": "the"})
    with pytest.raises(RecipeError, match="missing key 'kind'"):
        validate_tokenizer(None)


def test_sections_are_frozen_and_take_integers_for_floats() -> None:
    config = validate_tokenizer({"kind": "bpe", "sample_megabytes": 5})
    assert config.sample_megabytes == 5.0  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="frozen"):
        config.kind = "bytes"  # type: ignore[assignment]


def test_every_key_is_described_with_its_default() -> None:
    for model in (DataConfig, TokenizerConfig):
        lines = [line for line in describe(model).splitlines() if "kind:" not in line]
        assert lines and all("# " in line for line in lines)
    text = describe(DataConfig)
    assert "folder: str (required)" in text and "  min_characters: int = 1" in text
    assert "  kind: parquet" in text and "document: line | paragraph | file" in text
