"""The last word of a passage: against every text on its own, one token after the other."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.errors import DataError
from data_prep.recipe.data import CleanConfig
from pipeline.evaluate.last_word import last_word
from pipeline.evaluate.model import LanguageModel
from pipeline.evaluate.stage import evaluate_model
from pipeline.recipe.evaluation import LastWordConfig
from tests.pipeline.test_evaluate import exported

TEXTS = ["the tea was good", "a cup of good tea", "tea is", "it was " * 30 + "bad", "so bad  tea "]


def passages(folder: Path, texts: list[str]) -> LastWordConfig:
    path = folder / "passages.jsonl"
    path.write_text("".join(json.dumps({"passage": text}) + "\n" for text in texts))
    return LastWordConfig(path=str(path), text_field="passage")


@pytest.fixture(scope="module", params=["mlstm", "transformer"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> LanguageModel:
    run = exported(tmp_path_factory.mktemp("run"), request.param)
    return LanguageModel.load(run.export_folder, "cpu")


@torch.no_grad()
def obvious(model: LanguageModel, text: str) -> tuple[bool, float]:
    """Hit or not, and nats, of the last word, each token predicted from a model call of its own."""
    text = text.rstrip()
    ids = model.tokenizer.encode_prompt(text).tolist()
    first = len(model.tokenizer.encode_prompt(text[: text.rindex(" ")]))
    hits, nats = [], 0.0
    for place in range(first, len(ids)):
        before = ids[:place]
        if model.position_limit is not None:  # the window ends where the passage ends
            before = before[max(0, len(ids) - model.position_limit - 1) :]
        log_prob = model.model(torch.tensor([before])).logits[0, -1].double().log_softmax(0)
        hits.append(int(log_prob.argmax()) == ids[place])
        nats -= float(log_prob[ids[place]])
    return all(hits), nats


def test_as_one_token_after_the_other(model: LanguageModel, tmp_path: Path) -> None:
    found = last_word(model, passages(tmp_path, TEXTS), CleanConfig(profile="none"), 1)
    hits, nats = zip(*(obvious(model, text) for text in TEXTS), strict=True)
    assert found["accuracy"] == np.mean(hits)
    assert found["ppl_per_word"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)
    assert found["texts"] == len(TEXTS)
    assert found["cut"] == (0 if model.recurrent else 1)


def test_a_model_that_knows_the_word_hits_it(model: LanguageModel, tmp_path: Path) -> None:
    """The hit must be able to happen: ask for the words that the model itself would say."""
    texts = []
    for text in TEXTS[:3]:
        ids = model.tokenizer.encode_prompt(text + " ")
        rows = torch.from_numpy(ids.astype(np.int64))[None, -12:]
        with torch.no_grad():
            best = model.model(rows).logits[0, -1].argmax()
        texts.append(text + " " + model.tokenizer.decode([int(best)]))
    if any(not text.split(" ")[-1].strip() for text in texts):
        pytest.skip("the small model says no word")
    found = last_word(model, passages(tmp_path, texts), CleanConfig(profile="none"), 1)
    assert found["accuracy"] == np.mean([obvious(model, text)[0] for text in texts])


def test_bad_passages_are_refused(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: 'alone' is one word"):
        last_word(model, passages(tmp_path, ["a b", "alone"]), CleanConfig(), 1)
    with pytest.raises(DataError, match="holds no texts"):
        last_word(model, passages(tmp_path, []), CleanConfig(), 1)
    with pytest.raises(DataError, match="no field 'passage'"):
        section = passages(tmp_path, ["a b"])
        Path(section.path).write_text('{"text": "a b"}\n')
        last_word(model, section, CleanConfig(), 1)


def test_the_evaluate_stage_writes_them(tmp_path: Path) -> None:
    section = passages(tmp_path, TEXTS).model_dump()
    recipe = exported(tmp_path, "transformer", eval__last_word={"small": section})
    output = evaluate_model(recipe)
    written = json.loads((recipe.run_folder / "evals" / "last_word.json").read_text())
    assert output.counts["small_accuracy"] == written["small"]["accuracy"]
