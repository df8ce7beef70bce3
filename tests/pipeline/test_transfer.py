"""The transfer protocol, the strongest unit, and text steered by it."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.errors import DataError, RecipeError
from data_prep.recipe.data import CleanConfig
from pipeline.__main__ import main
from pipeline.evaluate.model import LanguageModel
from pipeline.evaluate.pooling import pooled, streamed
from pipeline.evaluate.samples import samples
from pipeline.evaluate.transfer import STRENGTHS, transfer
from pipeline.evaluate.unit import histogram, unit_over_text
from pipeline.recipe import load_recipe
from pipeline.recipe.transfer import TransferConfig
from pipeline.report.document import Picture, Table
from pipeline.report.transfer import transfer_section
from pipeline.stages.runner import ALL, run_stages
from tests.pipeline.test_evaluate import exported
from tests.pipeline.test_evaluate_sentiment import sentence
from tests.pipeline.tiny import write_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("run"), "mlstm").export_folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return LanguageModel.load(folder, "cpu")


def write_texts(path: Path, seed: int, count: int = 120, last: tuple[str, str] = ("awful", "great")
                ) -> str:  # fmt: skip
    """Sentences of which the last word tells the label."""
    rng = random.Random(seed)
    with path.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["label", "text"])
        for number in range(count):
            rows.writerow([number % 2, sentence(rng, last[number % 2])])
    return str(path)


@pytest.fixture(scope="module")
def found(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("texts")
    names = ("train", "validation", "test")
    files = {name: write_texts(folder / f"{name}.csv", i) for i, name in enumerate(names)}
    return transfer(model, "words", TransferConfig(**files), CleanConfig(), 1)


def test_separable_texts_are_told_apart(found: dict[str, Any]) -> None:
    assert found["texts"] == {"train": 120, "validation": 120, "test": 120}
    assert found["labels"] == ["0", "1"]
    assert found["accuracy"] > 0.9 > found["majority_accuracy"] == 0.5
    assert found["C"] in STRENGTHS
    assert 0 < found["nonzero_weights"] <= found["features"] == 24
    assert found["unit_accuracy"] > 0.6
    low, high = found["unit_interval"]
    assert low <= found["unit_accuracy"] <= high


def test_labels_without_meaning_are_guessed(model: LanguageModel, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.csv", 3, 400, ("again", "again"))
    result = transfer(model, "a", TransferConfig(train=path), CleanConfig(), 1)
    assert abs(result["accuracy"] - 0.5) < 0.2
    # Shares of one file: 80 of 400 to judge, and of the rest a fifth to choose C.
    assert result["texts"] == {"train": 256, "validation": 64, "test": 80}


def test_the_test_texts_choose_nothing(model: LanguageModel, tmp_path: Path) -> None:
    train = write_texts(tmp_path / "train.csv", 0)
    results = []
    for seed in (1, 2):
        test = write_texts(tmp_path / f"test{seed}.csv", seed, 40)
        section = TransferConfig(train=train, test=test)
        results.append(transfer(model, "a", section, CleanConfig(), 1))
    for key in ("C", "unit", "nonzero_weights"):
        assert results[0][key] == results[1][key]


def test_the_course_ends_where_the_histogram_looks(
    model: LanguageModel, found: dict[str, Any]
) -> None:
    assert sum(map(sum, found["histogram"]["counts"])) == 120
    low, high = found["courses"]
    for course in (low, high):
        assert len(course["values"]) == len(course["text"])
        # The features end after the closing frame, one byte further.
        ids = model.tokenizer.encode_prompt(course["text"]).astype(np.int64)
        with torch.no_grad():
            state = model.model.hidden(torch.from_numpy(ids)[None])[1]
        expected = float(state[0, -1, 0, found["unit"]])
        assert course["values"][-1] == pytest.approx(expected, abs=1e-5)
    ends = model.features([low["text"], high["text"]])[:, found["unit"]]
    assert ends[0] < ends[1]


def test_a_character_of_several_bytes_has_one_value(model: LanguageModel) -> None:
    assert len(unit_over_text(model, 0, "茶 é!")) == 4


def test_histogram_holds_every_value() -> None:
    values = np.r_[np.linspace(0, 1, 998), [-1e6, 1e6]]
    counts = histogram(values, np.arange(1000) % 2)
    assert sum(map(sum, counts["counts"])) == 1000
    assert -1 < counts["edges"][0] and counts["edges"][-1] < 2
    assert sum(histogram(np.zeros(4), np.array([0, 0, 1, 1]))["counts"][0]) == 2


def test_reading_in_steps_gives_the_same_vectors(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = model.framing.encode(["short", "a text that is much longer than the other", "x"], None)
    rows = model.framing.rows(ids)
    monkeypatch.setattr("pipeline.evaluate.pooling._STREAMED_STEPS", 7)
    with torch.no_grad():
        torch.testing.assert_close(streamed(model.model, rows), pooled(model.model, rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_field": "text"}, "expected 2: check label_field"),
        ({"text_field": "review"}, "no field 'review'"),
        ({"train": "missing.csv"}, "does not exist"),
    ],
)
def test_wrong_sets_are_refused(
    model: LanguageModel, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    files = {name: write_texts(tmp_path / f"{name}.csv", 0) for name in ("train", "test")}
    section = TransferConfig(**({**files, "validation": files["test"]} | change))
    with pytest.raises(DataError, match=message):
        transfer(model, "a", section, CleanConfig(), 1)


def test_too_few_texts_are_refused(model: LanguageModel, tmp_path: Path) -> None:
    train, few = write_texts(tmp_path / "a.csv", 0), write_texts(tmp_path / "b.csv", 0, 6)
    section = TransferConfig(train=train, validation=few, test=train)
    with pytest.raises(DataError, match="validation texts are 3 of '0' and 3 of '1'"):
        transfer(model, "a", section, CleanConfig(), 1)


def test_an_empty_text_has_no_features(model: LanguageModel) -> None:
    with pytest.raises(DataError, match="text 1 is empty"):
        model.features(["a", ""])


def test_pictures_of_the_unit(found: dict[str, Any]) -> None:
    section = transfer_section({"words": found})
    pictures = [block for block in section.blocks if isinstance(block, Picture)]
    assert [picture.name for picture in pictures] == ["unit_words", "heat_words"]
    assert all(picture.png.startswith(b"\x89PNG") for picture in pictures)
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert len(table.rows[0]) == len(table.header)
    assert not transfer_section({}).blocks
    without = transfer_section({"words": found | {"courses": []}})
    assert sum(isinstance(block, Picture) for block in without.blocks) == 1


def test_a_clamped_unit_stays_where_it_is(model: LanguageModel) -> None:
    ids = torch.from_numpy(model.tokenizer.encode_prompt("the tea").astype(np.int64))[None]
    with torch.no_grad():
        out = model.model(ids, clamp={3: 2.5})
        free = model.model(ids)
    assert out.state[0, -1, 0, 3] == 2.5
    changed = (out.state != free.state).nonzero().tolist()
    assert changed == [[0, 1, 0, 3]]
    torch.testing.assert_close(out.logits, free.logits)


def test_a_clamp_steers_the_text(model: LanguageModel) -> None:
    free = samples(model, ["the tea"], 40, 0.8, 1)
    assert samples(model, ["the tea"], 40, 0.8, 1, {}) == free
    low = samples(model, ["the tea"], 40, 0.8, 1, {3: -8.0})
    high = samples(model, ["the tea"], 40, 0.8, 1, {3: 8.0})
    assert low != high


def test_a_unit_that_is_not_there_is_refused(model: LanguageModel) -> None:
    with pytest.raises(RecipeError, match="no unit 24: the model has units 0 to 23"):
        samples(model, ["a"], 5, 1.0, 1, {24: 1.0})


def test_the_sample_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sample", str(folder), "the tea", "--tokens", "8", "--seed", "3", "--clamp", "2=1.5"])
    assert capsys.readouterr().out.startswith("the tea")
    with pytest.raises(RecipeError, match="above 0"):
        main(["sample", str(folder), "the tea", "--tokens", "0"])
    with pytest.raises(SystemExit):
        main(["sample", str(folder), "the tea", "--clamp", "two"])
    with pytest.raises(DataError, match="does not exist"):
        main(["sample", str(folder / "nowhere"), "the tea"])


def test_the_evaluate_stage_writes_every_set(tmp_path: Path) -> None:
    files = {name: write_texts(tmp_path / f"{name}.csv", 0) for name in ("train", "test")}
    recipe = exported(tmp_path, "mlstm", eval__transfer={"one": files, "two": files})
    from pipeline.evaluate.stage import evaluate_model

    output = evaluate_model(recipe)
    written = json.loads((recipe.run_folder / "evals" / "transfer.json").read_text())
    assert list(written) == ["one", "two"]
    assert output.counts["one_accuracy"] == written["one"]["accuracy"]


def test_a_tokenizer_with_another_offset_is_refused(folder: Path, tmp_path: Path) -> None:
    """Files of another code count a padding id first: 257 ids, every byte shifted by one."""
    shutil.copytree(folder, tmp_path / "export")
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    state = load_file(tmp_path / "export" / "model.safetensors")
    for name in ("embedding.weight", "lm_head.weight", "lm_head.bias"):
        state[name] = torch.cat([torch.zeros_like(state[name][:1]), state[name]])
    save_file(state, tmp_path / "export" / "model.safetensors", {"format": "pt"})
    (tmp_path / "export" / "config.json").write_text(json.dumps(config | {"vocab_size": 257}))
    with pytest.raises(DataError, match="a model of 257 ids with a tokenizer of 256"):
        LanguageModel.load(tmp_path / "export", "cpu")


def test_files_of_the_end_are_looked_for_at_the_beginning(tmp_path: Path) -> None:
    train = write_texts(tmp_path / "train.csv", 0)
    sets = {"one": {"train": train, "test": str(tmp_path / "nowhere.csv")}}
    recipe = load_recipe(write_recipe(tmp_path, "mlstm", eval__transfer=sets))
    with pytest.raises(RecipeError, match="eval.transfer.one.test: .*nowhere.csv does not exist"):
        run_stages(recipe, ALL)
    assert not recipe.run_folder.exists()
