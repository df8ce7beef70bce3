"""The exported model read back: vectors, held-out loss and samples against plain computations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from data_prep.errors import DataError, RecipeError
from data_prep.shards import Prepared, Split
from pipeline.evaluate.accuracy import accuracy_interval, majority_accuracy
from pipeline.evaluate.heldout import heldout, text_loss
from pipeline.evaluate.model import LanguageModel
from pipeline.evaluate.pooling import position_limit
from pipeline.evaluate.samples import samples
from pipeline.evaluate.stage import evaluate_model
from pipeline.evaluate.walk import Reading
from pipeline.export.hf import export_model
from pipeline.recipe import Recipe, load_recipe
from tests.pipeline.streams import reset_points
from tests.pipeline.test_export import make_checkpoint
from tests.pipeline.tiny import write_recipe

TEXTS = ["tea", "good warm milk", "a", "naïve 😀 coffee", "the cup was nice", "tea", "so " * 60]


def exported(folder: Path, kind: str, **changes: Any) -> Recipe:
    recipe = load_recipe(
        write_recipe(folder, kind, eval__prompts=["The tea"], eval__sample_tokens=5, **changes)
    )
    make_checkpoint(recipe)
    export_model(recipe)
    return recipe


@pytest.fixture(scope="module", params=["mlstm", "gpt2"])
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return exported(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(recipe: Recipe) -> LanguageModel:
    return LanguageModel.load(recipe.export_folder, "cpu")


@pytest.mark.parametrize("batch_tokens", [1, 40, 10000])
def test_batched_features_are_those_of_each_text_alone(
    model: LanguageModel, batch_tokens: int
) -> None:
    found = model.features(TEXTS, batch_tokens)
    assert found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            if model.recurrent:
                ids = torch.tensor([list(f"\n {text} ".encode())])
                alone = model.model.hidden(ids)[1][0, -1, 0]
            else:
                row = model.tokenizer.encode_prompt(text)[:32].astype("int64")  # 32 positions
                ids = torch.from_numpy(row)[None]
                alone = model.model.base_model(input_ids=ids).last_hidden_state[0, 1:].mean(0)
        np.testing.assert_allclose(vector, alone.numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3  # different texts, different vectors


def test_an_empty_text_has_no_features(model: LanguageModel) -> None:
    with pytest.raises(DataError, match="text 1 is empty"):
        model.features(["tea", ""])


def slow_nll(model: LanguageModel, ids: np.ndarray, tokens: int, zero_at: set[int]) -> float:
    """Sum of losses in nats, token by token in float64; `zero_at` forgets all that was read."""
    net = model.model.double()
    total, begin = 0.0, 0
    for place in range(tokens):
        if place in zero_at:
            begin = place
        seen = torch.from_numpy(ids[begin : place + 1].astype("int64"))[None]
        with torch.no_grad():
            logits = net(input_ids=seen).logits[0, -1]
        total -= float(logits.log_softmax(-1)[int(ids[place + 1])])
    model.model.float()
    return total


@pytest.mark.parametrize(("batch", "max_tokens"), [(1, 200), (3, 197), (64, 10**6)])
def test_heldout_is_the_plain_sum(
    recipe: Recipe, model: LanguageModel, batch: int, max_tokens: int
) -> None:
    split, window = Prepared.open(recipe.data.folder).split("test"), 16
    tokens = min(max_tokens, split.tokens - 1)
    piece = window
    if model.recurrent:
        piece = math.ceil(tokens / min(batch, math.ceil(tokens / window)))
    zero_at = set(range(0, tokens, piece)) | (reset_points(split) if model.recurrent else set())
    nats = slow_nll(model, split.read(0, split.tokens), tokens, zero_at)
    found = heldout(model, split, Reading(window, window, batch), max_tokens)
    assert found["tokens"] == tokens
    assert found["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-5)
    text = slow_text(model, split, tokens + 1)
    if tokens + 1 == split.tokens:
        assert (len(text.encode()), len(text)) == (split.bytes, split.characters)
    bits = nats / tokens / math.log(2) * (tokens + 1)
    assert found["bits_per_byte"] == pytest.approx(bits / len(text.encode()), rel=1e-5)
    assert found["bits_per_character"] == pytest.approx(bits / len(text), rel=1e-5)
    assert found["ppl_per_token"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found["ppl_per_byte"] == pytest.approx(2 ** (bits / len(text.encode())), rel=1e-4)


def slow_text(model: LanguageModel, split: Split, tokens: int) -> str:
    """What the first tokens of a split spell, each document without its frame."""
    found, tokenizer, start = "", model.tokenizer, 0
    for end in split.document_ends:
        if start < tokens:
            text = tokenizer.decode(split.read(start, min(int(end), tokens)))
            text = text.removeprefix(tokenizer.prefix)
            found += text.removesuffix(tokenizer.suffix) if end <= tokens else text
        start = int(end)
    return found


def slow_window_nll(
    model: LanguageModel, ids: np.ndarray, first: int, window: int, stride: int
) -> float:
    """The sum over tokens from `first` on, in float64, each after what its window shows of the
    tokens before it; the windows of a token are found by looking at every one of them."""
    net, total = model.model.double(), 0.0
    for target in range(first, len(ids)):
        begins = [at for at in range(0, len(ids), stride) if at <= target - 1 < at + window]
        seen = torch.from_numpy(ids[min(begins) : target].astype("int64"))[None]
        with torch.no_grad():
            total -= float(net(input_ids=seen).logits[0, -1].log_softmax(-1)[int(ids[target])])
    model.model.float()
    return total


@pytest.mark.parametrize(("stride", "batch"), [(16, 2), (5, 3), (1, 64)])
def test_the_loss_of_any_text_is_the_plain_sum(
    model: LanguageModel, tmp_path: Path, stride: int, batch: int
) -> None:
    text = "The  tea was naïve,\n\nand 😀 the milk warm.\n" * 2 + "A cup"
    (tmp_path / "text.txt").write_bytes(text.encode())
    ids, first = model.tokenizer.encode_prompt(text), len(model.tokenizer.encode_prompt(""))
    if model.recurrent:  # a lane begins with an empty state
        places = len(ids) - 1
        length = math.ceil(places / min(batch, math.ceil(places / 16)))
        nats = slow_window_nll(model, ids, first, length, length)
    else:
        nats = slow_window_nll(model, ids, first, 16, stride)
    found = text_loss(model, "mine", tmp_path / "text.txt", Reading(16, stride, batch))
    assert found["tokens"] == len(ids) - first
    assert found["nats_per_token"] == pytest.approx(nats / found["tokens"], rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text.encode()))
    assert found["bits_per_character"] == pytest.approx(nats / math.log(2) / len(text))
    assert found["words"] == 20
    assert found["ppl_per_word"] == pytest.approx(math.exp(nats / 20), rel=1e-4)
    if not model.recurrent:
        assert (found["window_tokens"], found["stride_tokens"]) == (16, stride)


def test_words_of_the_test_split_are_those_of_its_texts(
    recipe: Recipe, model: LanguageModel
) -> None:
    split = Prepared.open(recipe.data.folder).split("test")
    found = heldout(model, split, Reading(16, 16, 8), 10**9)
    ends = split.document_ends
    documents = [split.read(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    assert found["words"] == sum(len(model.tokenizer.decode(d).split()) for d in documents)
    nats = found["nats_per_token"] * found["tokens"]
    assert found["ppl_per_word"] == pytest.approx(math.exp(nats / found["words"]))


def test_text_that_is_none_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty.txt is empty.*eval.texts.mine"):
        text_loss(model, "mine", tmp_path / "empty.txt", Reading(16, 16, 2))
    with pytest.raises(DataError, match="cannot be read"):
        text_loss(model, "mine", tmp_path / "nothing.txt", Reading(16, 16, 2))


def test_a_stride_must_not_leave_tokens_out(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "gpt2", eval__stride_tokens=17)
    with pytest.raises(RecipeError, match="eval.stride_tokens=17 is longer than.*=16"):
        load_recipe(path)


def test_samples_depend_on_the_seed_alone(model: LanguageModel) -> None:
    prompts = ["The tea", "Milk"]
    first = samples(model, prompts, 12, 0.8, seed=3)
    torch.rand(5)
    assert samples(model, prompts, 12, 0.8, seed=3) == first
    assert samples(model, prompts, 12, 0.8, seed=4) != first
    assert [sample["prompt"] for sample in first] == prompts
    for sample in first:
        assert sample["tokens"] == 12 or sample["ended"] == "end of document"


def test_a_transformer_stops_at_its_last_position(model: LanguageModel) -> None:
    sample = samples(model, ["The tea"], 100, 5.0, seed=1)[0]
    if model.recurrent:
        assert (sample["tokens"], sample["ended"]) == (100, "length")
    else:
        room = 32 - len(model.tokenizer.encode_prompt("The tea"))
        assert (sample["tokens"], sample["ended"]) == (room, "positions")
        with pytest.raises(RecipeError, match="32 positions"):
            samples(model, ["tea " * 50], 5, 1.0, seed=1)


def test_the_stage_writes_what_the_recipe_asks_for(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("Some other text.")
    recipe.eval.texts["other"] = str(tmp_path / "other.txt")
    output = evaluate_model(recipe)
    assert [path.name for path in output.outputs] == ["heldout.json", "texts.json", "samples.json"]
    found = json.loads((recipe.run_folder / "evals" / "heldout.json").read_text())
    test = Prepared.open(recipe.data.folder).manifest["splits"]["test"]
    assert found["unigram_bits_per_byte"] == test["unigram_bits_per_byte"]
    assert found["tokens"] == min(recipe.eval.max_tokens, test["tokens"] - 1)
    texts = json.loads((recipe.run_folder / "evals" / "texts.json").read_text())
    assert texts["other"]["words"] == 3
    written = json.loads((recipe.run_folder / "evals" / "samples.json").read_text())
    assert [sample["prompt"] for sample in written] == ["The tea"]
    before = (recipe.run_folder / "evals" / "heldout.json").read_bytes()
    with pytest.raises(RecipeError, match="nothing is overwritten"):
        evaluate_model(recipe)
    assert (recipe.run_folder / "evals" / "heldout.json").read_bytes() == before


def test_what_is_no_export_is_named(recipe: Recipe, tmp_path: Path) -> None:
    checkpoints = recipe.run_folder / "checkpoints"
    for folder in (checkpoints, checkpoints / "global_step6"):
        with pytest.raises(DataError, match="holds a checkpoint.*python -m pipeline export"):
            LanguageModel.load(folder)
    with pytest.raises(DataError, match="does not exist.*python -m pipeline export"):
        LanguageModel.load(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no config.json"):
        LanguageModel.load(tmp_path)


def test_the_interval_is_that_of_resampled_answers() -> None:
    correct = np.arange(200) % 4 != 0
    found = accuracy_interval(correct, 4000, seed=1)
    rng = np.random.default_rng(7)
    plain = [correct[rng.integers(0, 200, 200)].mean() for _ in range(4000)]
    assert found["accuracy"] == 0.75
    np.testing.assert_allclose(found["interval"], np.quantile(plain, [0.025, 0.975]), atol=0.011)


def test_the_majority_is_that_of_the_other_texts() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    assert majority_accuracy(labels, np.array([3, 4, 7])) == pytest.approx(1 / 3)


def test_positions_of_padding_hold_no_token() -> None:
    """RoBERTa has 514 of them and takes 512 tokens."""
    roberta = transformers.RobertaConfig(max_position_embeddings=514, pad_token_id=1)
    assert position_limit(roberta) == 512
    assert position_limit(transformers.BertConfig(max_position_embeddings=512)) == 512
