"""Fine-tuning: learns a separable task, trains what it should, refuses what it cannot use."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_prep.errors import DataError, RecipeError
from pipeline.evaluate.model import LanguageModel
from pipeline.evaluate.pooling import pooled
from pipeline.export.hf import export_model
from pipeline.finetune.stage import finetune_model
from pipeline.recipe import Recipe, load_recipe
from tests.pipeline.test_export import make_checkpoint
from tests.pipeline.tiny import write_recipe

WORDS = "the tea cup of warm milk was here and again very".split()


def write_labelled(path: Path, labels: dict[str, int]) -> Path:
    """`labels[word]` sentences that end with the word, which is their label too."""
    rng = random.Random(0)
    rows = [
        (" ".join([*rng.choices(WORDS, k=rng.randint(1, 4)), word]), word)
        for word, count in labels.items()
        for _ in range(count)
    ]
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([("text", "label"), *rows])
    return path


def finetune_recipe(folder: Path, kind: str, **section: Any) -> Recipe:
    defaults = {"path": str(folder / "labelled.csv"), "epochs": 6, "batch": 16, "lr": 0.02,
                "max_tokens": 40, "test_share": 0.25}  # fmt: skip
    return load_recipe(write_recipe(folder, kind, finetune=defaults | section))


@pytest.mark.parametrize("kind", ["mlstm", "gpt2"])
@pytest.mark.parametrize("mode", ["full", "probe"])
def test_a_separable_task_is_learnt(tmp_path: Path, kind: str, mode: str) -> None:
    write_labelled(tmp_path / "labelled.csv", {"great": 90, "awful": 60})
    # A probe on features that are all but random needs longer than a model that adapts.
    rate, epochs = (0.02, 6) if mode == "full" else (0.2, 15)
    recipe = finetune_recipe(tmp_path, kind, mode=mode, lr=rate, epochs=epochs)
    make_checkpoint(recipe)
    export_model(recipe)
    before = LanguageModel.load(recipe.export_folder, "cpu").model.state_dict()
    output = finetune_model(recipe)
    folder = recipe.run_folder / "finetune"
    assert output.outputs == [folder]
    found = json.loads((folder / "metrics.json").read_text())
    assert (found["train_texts"], found["test_texts"]) == (112, 38)
    assert found["labels"] == json.loads((folder / "labels.json").read_text()) == ["awful", "great"]
    assert found["accuracy"] > found["majority_accuracy"] + 0.2
    assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
    assert found["macro_f1"] > 0.7
    saved = load_file(folder / "model.safetensors")
    assert saved["linear.weight"].shape == (
        2,
        before[next(iter(before))].shape[1] if kind == "gpt2" else 24,
    )
    kept = [name for name in before if f"model.{name}" in saved]
    moved = [name for name in kept if not torch.equal(saved[f"model.{name}"], before[name])]
    assert kept
    assert bool(moved) == (mode == "full")
    with pytest.raises(RecipeError, match="nothing is overwritten"):
        finetune_model(recipe)
    assert json.loads((folder / "metrics.json").read_text()) == found


def test_gradients_reach_the_model_through_the_pooled_vector(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, "mlstm"))
    make_checkpoint(recipe)
    export_model(recipe)
    model = LanguageModel.load(recipe.export_folder, "cpu")
    classifier = Classifier(model.model, 2, probe=False)
    rows = model.framing.rows(model.framing.encode(["tea", "warm milk"], None))
    features = torch.from_numpy(model.features(["tea", "warm milk"]))
    torch.testing.assert_close(pooled(model.model, rows), features)
    classifier(*rows).sum().backward()
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert name.startswith("model.lm_head")


@pytest.mark.parametrize(
    ("labels", "message"),
    [({"great": 30}, "1 class"), ({"great": 30, "awful": 1}, "cannot hold out a test set")],
)
def test_too_few_classes_or_texts_are_refused(
    tmp_path: Path, labels: dict[str, int], message: str
) -> None:
    write_labelled(tmp_path / "labelled.csv", labels)
    with pytest.raises(DataError, match=message):
        finetune_model(finetune_recipe(tmp_path, "mlstm"))


def test_max_texts_and_a_recipe_without_the_section(tmp_path: Path) -> None:
    from pipeline.finetune.texts import read_texts

    write_labelled(tmp_path / "labelled.csv", {"great": 30, "awful": 30})
    recipe = finetune_recipe(tmp_path, "mlstm", max_texts=20)
    assert recipe.finetune is not None
    texts = read_texts(recipe.finetune, recipe.data.clean, seed=1)
    assert sorted([*texts.train, *texts.test]) == list(range(20))
    again = read_texts(recipe.finetune, recipe.data.clean, seed=1)
    assert texts.texts == again.texts and (texts.test == again.test).all()
    assert texts.texts != read_texts(recipe.finetune, recipe.data.clean, seed=2).texts
    with pytest.raises(RecipeError, match="no finetune: section"):
        finetune_model(load_recipe(write_recipe(tmp_path, "mlstm")))
