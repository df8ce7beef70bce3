"""Fine-tuning: learns a separable task, keeps the best, goes on after a stop, refuses bad input."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    pipeline,
)

from data_prep.errors import DataError, RecipeError, StoppedAndSaved
from pipeline.evaluate.model import LanguageModel
from pipeline.export.hf import export_model
from pipeline.export.register import register_models
from pipeline.finetune import training
from pipeline.finetune.batches import Order, class_weights
from pipeline.finetune.stage import finetune, finetune_model
from pipeline.recipe import Recipe, load_finetuning, load_recipe
from pipeline.recipe.finetune import FinetuneConfig
from tests.e2e.commands import ROOT, environment, python, refused
from tests.pipeline.test_export import make_checkpoint
from tests.pipeline.tiny import write_recipe

torch.set_num_threads(1)

WORDS = "the tea cup of warm milk was here and again very".split()
LABELS = {"great": 90, "awful": 60}


def write_labelled(path: Path, labels: dict[str, int] = LABELS) -> Path:
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


def exported(folder: Path, kind: str, **changes: Any) -> Recipe:
    recipe = load_recipe(write_recipe(folder, kind, **changes))
    make_checkpoint(recipe)
    export_model(recipe)
    return recipe


@pytest.fixture(scope="module", params=["mlstm", "gpt2"])
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp(request.param), request.param).export_folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("gpt2"), "gpt2").export_folder


def section(model: Path, folder: Path, **changes: Any) -> FinetuneConfig:
    """What fine-tunes `model` on the sentences, with its result in `folder`/out."""
    if not (folder / "labelled.csv").exists():
        write_labelled(folder / "labelled.csv")
    given: dict[str, Any] = {
        "model": str(model), "folder": str(folder / "out"), "train": str(folder / "labelled.csv"),
        "epochs": 4, "batch": 16, "lr": 0.02, "max_tokens": 40, "test_share": 0.25,
        "bootstrap_samples": 50,
    }  # fmt: skip
    return FinetuneConfig(**(given | changes))


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "metrics.json").read_text())


@pytest.mark.parametrize("mode", ["full", "probe"])
def test_a_separable_task_is_learnt(export: Path, tmp_path: Path, mode: str) -> None:
    # A probe on features that are all but random needs longer than a model that adapts.
    rate, epochs = (0.02, 4) if mode == "full" else (0.2, 10)
    output = finetune(section(export, tmp_path, mode=mode, lr=rate, epochs=epochs))
    folder = tmp_path / "out"
    assert output.outputs == [folder]
    found = metrics(tmp_path)
    assert (found["train_texts"], found["validation_texts"], found["test_texts"]) == (100, 12, 38)
    assert found["labels"] == ["awful", "great"]
    assert found["accuracy"] > found["majority_accuracy"] + 0.2
    assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
    assert found["macro_f1"] > 0.7 and found["f1"] > 0.7 and found["mcc"] > 0.5
    assert not folder.with_name("out.tmp").exists()
    before, after = (load_file(f / "model.safetensors") for f in (export, folder))
    kept = before.keys() & after.keys()
    assert kept and after.keys() - kept <= {"score.weight", "score.bias"}
    assert any(not torch.equal(before[name], after[name]) for name in kept) == (mode == "full")
    card = (folder / "README.md").read_text()
    assert f"| accuracy | {found['accuracy']:.4f} |" in card


def test_the_result_is_what_transformers_loads(export: Path, tmp_path: Path) -> None:
    finetune(section(export, tmp_path, label_names={"great": "good"}))
    register_models()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert model.config.id2label == {0: "awful", 1: "good"}
    classify = pipeline("text-classification", str(tmp_path / "out"))
    texts = ["the milk was awful", "tea great"]
    found = classify(texts)
    assert [one["label"] for one in found] == ["awful", "good"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    # The tokenizer frames a text as the language model met it.
    ids = LanguageModel.load(export, "cpu").framing.encode(texts[:1], None)[0]
    assert tokenizer(texts[0])["input_ids"] == ids.tolist()
    batch = {"input_ids": torch.tensor([tokenizer(texts[0])["input_ids"]])}
    with torch.no_grad():
        logits = model(**batch).logits.softmax(-1)
    assert float(logits[0, 0]) == pytest.approx(found[0]["score"], abs=1e-5)


def test_padding_on_either_side_has_no_influence(tmp_path: Path) -> None:
    recipe = exported(tmp_path, "mlstm")
    register_models()
    model = AutoModelForSequenceClassification.from_pretrained(recipe.export_folder).eval()
    row = torch.tensor([[10, 32, 116, 101, 97]])
    with torch.no_grad():
        alone = model(row).logits
        for pads in ((0, 3), (3, 0)):
            ids = torch.nn.functional.pad(row, pads, value=65)
            mask = torch.nn.functional.pad(torch.ones_like(row), pads)
            both = model(torch.cat([ids, ids]), attention_mask=torch.cat([mask, mask])).logits
            torch.testing.assert_close(both, alone.expand(2, -1))
    features = LanguageModel.load(recipe.export_folder, "cpu").features(["tea"])
    ids = torch.tensor([[10, 32, 116, 101, 97, 32]])  # the framed text
    torch.testing.assert_close(
        model(ids).logits, model.score(torch.from_numpy(features))
    )  # fmt: skip


def test_a_model_from_elsewhere_is_as_good(tmp_path: Path) -> None:
    """An encoder with a tokenizer of its own and no card of ours."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1} | {w: i + 2 for i, w in enumerate([*WORDS, "great", "awful"])}
    library = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=library, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path / "bert")
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "bert")
    finetune(section(tmp_path / "bert", tmp_path, lr=0.01))
    assert metrics(tmp_path)["accuracy"] > 0.9


def test_another_head_than_softmax_lies_no_stone_in_the_way(tmp_path: Path) -> None:
    recipe = exported(tmp_path, "gpt2", head={"kind": "gram", "loss": "taylor"})
    finetune(section(recipe.export_folder, tmp_path, mode="probe", lr=0.2, epochs=10))
    assert metrics(tmp_path)["accuracy"] > metrics(tmp_path)["majority_accuracy"]


# Stop, kill, resume -----------------------------------------------------------------------------


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: type[BaseException] | None) -> None:
    """Ask for a stop in the given step, or die there."""
    take = training._step

    def interrupted(given: Any, places: Any, at: int, wish: int) -> tuple[float, int]:
        if at == step and error is not None:
            raise error("killed")
        loss, asked = take(given, places, at, wish)
        return loss, 1 if at == step else asked

    monkeypatch.setattr(training, "_step", interrupted)


@pytest.mark.parametrize("step", [2, 9])
@pytest.mark.parametrize("error", [None, MemoryError])
def test_stopped_or_killed_it_ends_as_it_would_have(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, error: Any
) -> None:
    for name in ("straight", "cut"):
        (tmp_path / name).mkdir()
    finetune(section(gpt2, tmp_path / "straight"))
    with monkeypatch.context() as patch:
        stop_at(patch, step, error)
        with pytest.raises(error or StoppedAndSaved):
            finetune(section(gpt2, tmp_path / "cut"))
    assert not (tmp_path / "cut/out").exists()
    resumed: list[int] = []
    take = training._step
    monkeypatch.setattr(training, "_step", lambda *a: (resumed.append(a[2]), take(*a))[1])
    finetune(section(gpt2, tmp_path / "cut"))
    looked = 6  # steps an epoch has
    assert resumed[0] == (step + 1 if error is None else step // looked * looked)
    straight, cut = (metrics(tmp_path / name) for name in ("straight", "cut"))
    assert {**straight, "seconds": 0} == {**cut, "seconds": 0}
    weights = [load_file(tmp_path / n / "out/model.safetensors") for n in ("straight", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_stop_file_is_heeded_and_removed(gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    with pytest.raises(StoppedAndSaved, match=r"step 1 of .*STOP file.*the same command goes on"):
        finetune(section(gpt2, tmp_path))
    assert not (tmp_path / "STOP").exists()
    with pytest.raises(RecipeError, match=r"other settings \(lr: 0.02 there, 0.01 now\)"):
        finetune(section(gpt2, tmp_path, lr=0.01))
    finetune(section(gpt2, tmp_path))


def test_what_is_finished_stays_and_is_given_again(gpt2: Path, tmp_path: Path) -> None:
    finetune(section(gpt2, tmp_path, epochs=1))
    before = metrics(tmp_path)
    output = finetune(section(gpt2, tmp_path, epochs=1))
    assert output.counts["accuracy"] == before["accuracy"] and metrics(tmp_path) == before
    with pytest.raises(RecipeError, match="nothing is overwritten"):
        finetune(section(gpt2, tmp_path, epochs=2))
    (tmp_path / "mine").mkdir()
    with pytest.raises(RecipeError, match="holds no fine-tuning"):
        finetune(section(gpt2, tmp_path).model_copy(update={"folder": str(tmp_path / "mine")}))


def test_the_best_state_is_kept_and_waiting_ends(gpt2: Path, tmp_path: Path) -> None:
    """A rate at which the model falls apart after it has learnt."""
    finetune(
        section(gpt2, tmp_path, epochs=30, eval_steps=2, patience=3, metric="loss", lr=0.05)
    )  # fmt: skip
    found = metrics(tmp_path)
    losses = {look["step"]: look["loss"] for look in found["history"]}
    assert found["stopped_early"] and found["steps"] == found["best_step"] + 6
    assert found["validation_loss"] == losses[found["best_step"]] == min(losses.values())


def test_the_command_stops_on_a_signal_and_goes_on(gpt2: Path, tmp_path: Path) -> None:
    given = section(gpt2, tmp_path, epochs=40, eval_steps=200)
    recipe = tmp_path / "alone.yaml"
    recipe.write_text(yaml.safe_dump({"finetune": given.model_dump(mode="json")}))
    command = [sys.executable, "-m", "pipeline", "finetune", str(recipe)]
    with subprocess.Popen(command, cwd=ROOT, env=environment()) as process:
        while not (tmp_path / "out.tmp/settings.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 75
    assert not (tmp_path / "out").exists()
    again = python("-m", "pipeline", "finetune", recipe)
    assert again.returncode == 0, again.stderr
    assert metrics(tmp_path)["accuracy"] > 0.9
    refused(
        python("-m", "pipeline", "finetune", recipe, "finetune.label_field=stars"), 3,
        "no field 'stars'", "label, text",
    )  # fmt: skip
    refused(python("-m", "pipeline", "finetune", recipe, "finetune.mode=half"), 2, "finetune.mode")


# Ranks ------------------------------------------------------------------------------------------


def _on_rank(rank: int, settings: dict[str, Any], deepspeed: bool) -> None:
    if deepspeed:
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    with pytest.raises(RecipeError, match="batch=15 does not divide into 2 processes"):
        finetune(FinetuneConfig(**settings | {"batch": 15}))
    finetune(FinetuneConfig(**settings))


@pytest.mark.parametrize("deepspeed", [False, True])
def test_two_ranks_do_what_one_does(tmp_path: Path, deepspeed: bool) -> None:
    from tests.ranks import run_ranks

    dropout = dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0)
    config = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32} | dropout
    model = exported(tmp_path, "gpt2", model__config=config).export_folder
    # Another epoch or two and Adam's small numbers part what rounding makes different.
    one = section(model, tmp_path, epochs=1, eval_steps=2, class_weights="balanced")
    finetune(one)
    two = one.model_copy(update={"folder": str(tmp_path / "two")})
    run_ranks(2, _on_rank, two.model_dump(), deepspeed)
    files = [tmp_path / name / "metrics.json" for name in ("out", "two")]
    first, second = (json.loads(file.read_text()) for file in files)
    assert first["accuracy"] == second["accuracy"] and first["steps"] == second["steps"]
    for mine, theirs in zip(first["history"], second["history"], strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


# Parts ------------------------------------------------------------------------------------------


def test_every_text_comes_once_an_epoch_and_batches_are_full() -> None:
    order = Order(texts=10, batch=4, seed=3)
    steps = [order.step(number) for number in range(5)]
    assert all(len(step) == 4 for step in steps)
    stream = np.concatenate(steps)
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert (stream[:10] != stream[10:]).any()
    assert (Order(10, 4, 3).step(3) == steps[3]).all()  # alone as after others
    assert (Order(10, 4, 4).step(0) != steps[0]).any()


def test_class_weights_are_one_in_the_mean() -> None:
    labels = np.array([0] * 6 + [1] * 2)
    assert class_weights("none", labels, ["a", "b"]).tolist() == [1, 1]
    balanced = class_weights("balanced", labels, ["a", "b"])
    assert balanced.tolist() == pytest.approx([8 / 12, 2])
    given = class_weights({"a": 1.0, "b": 4.0}, labels, ["a", "b"])
    assert given[1] / given[0] == pytest.approx(4) and given[labels].mean() == pytest.approx(1)
    with pytest.raises(KeyError, match="b"):
        class_weights({"a": 1.0}, labels, ["a", "b"])


def test_weights_of_classes_change_what_is_said(gpt2: Path, tmp_path: Path) -> None:
    """On texts that tell nothing, the class that weighs more is given."""
    rows = ["text,label", *("the tea,rare" if i % 5 == 0 else "the tea,common" for i in range(60))]
    (tmp_path / "same.csv").write_text("\n".join(rows) + "\n")
    said = {}
    for name, weights in (("plain", "none"), ("given", {"rare": 50.0, "common": 1.0})):
        (tmp_path / name).mkdir()
        finetune(section(
            gpt2, tmp_path / name, train=str(tmp_path / "same.csv"), class_weights=weights,
            metric="loss", epochs=6, mode="probe", lr=0.1, eval_steps=1000,
        ))  # fmt: skip
        model = pipeline("text-classification", str(tmp_path / name / "out"))
        said[name] = model("the tea")[0]["label"]
    assert said == {"plain": "common", "given": "rare"}


def test_the_rate_rises_and_falls_to_zero() -> None:
    given = FinetuneConfig(train="x.csv", lr=1.0, warmup_share=0.2)
    rates = [training.rate(given, step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1]) and rates[-1] == pytest.approx(1 / 8)
    assert rates[2:] == sorted(rates[2:], reverse=True)


# Bad input --------------------------------------------------------------------------------------


def test_a_checkpoint_is_no_model(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, "mlstm"))
    make_checkpoint(recipe)
    checkpoints = recipe.run_folder / "checkpoints"
    for folder in (checkpoints, checkpoints / "global_step6"):
        with pytest.raises(DataError, match="a checkpoint.*python -m pipeline export"):
            finetune(section(folder, tmp_path))
    with pytest.raises(DataError, match="does not exist: make an export"):
        finetune(section(tmp_path / "none", tmp_path))


def test_a_tokenizer_of_another_vocabulary_is_refused(gpt2: Path, tmp_path: Path) -> None:
    shutil.copytree(gpt2, tmp_path / "model")
    config = json.loads((gpt2 / "config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"vocab_size": 280}))
    with pytest.raises(DataError, match="a model of 280 ids with a tokenizer of 300.*pipeline exp"):
        finetune(section(tmp_path / "model", tmp_path))


def test_weights_that_leave_a_class_out_are_refused(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="names no weight for awful"):
        finetune(section(gpt2, tmp_path, class_weights={"great": 2.0}))


def test_a_recipe_without_the_section_and_one_that_has_nothing_else(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "mlstm")
    with pytest.raises(RecipeError, match="no finetune: section"):
        finetune_model(load_recipe(path))
    assert load_finetuning(path) is None
    alone = tmp_path / "alone.yaml"
    alone.write_text("finetune: {train: a.csv, folder: out}\n")
    with pytest.raises(RecipeError, match="finetune.model is needed"):
        load_finetuning(alone)
    found = load_finetuning(alone, ["finetune.model=runs/x/export"])
    assert found is not None and found.model == "runs/x/export"


def test_a_run_fills_in_what_its_section_leaves_out(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, "mlstm", finetune={"train": "a.csv"}))
    filled = recipe.finetuning
    assert filled is not None
    assert filled.model == str(recipe.export_folder) and filled.seed == recipe.run.seed
    assert filled.folder == str(recipe.run_folder / "finetune")
    assert filled.clean == recipe.data.clean
