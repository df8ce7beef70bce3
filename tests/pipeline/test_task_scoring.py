"""Likelihoods of options: every way to read against one option at a time in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel

from data_prep.errors import DataError
from pipeline.evaluate.tasks import scoring
from pipeline.evaluate.tasks.causal_lm import CausalLM
from pipeline.evaluate.tasks.examples import Example
from pipeline.evaluate.tasks.layout import lay_out, shared, width
from pipeline.evaluate.tasks.requests import Option, Request, make_requests
from pipeline.evaluate.tasks.scoring import Judgement, judge
from tests.pipeline.test_evaluate import exported

EXAMPLES = [
    Example(("The tea was", "The tea was"), ("good", "bad and cold"), 0),
    Example(("A cup of warm ",) * 4, ("milk", "tea", "so very nice coffee", "m"), 2),
    Example(("Some tea was good", "Naïve milk was good"), ("and so was the cup",) * 2, 1),
    Example(("The tea", "The milk"), ("was nice again",) * 2, 0),
    Example(("A", "b"), ("tea", "t"), 0),
    Example(("so " * 30 + "nice",) * 3, ("tea", "warm tea", "the tea"), 1),
    Example(("it is\n\n",), ("great",), 0),
]
SINGLE = [example for example in EXAMPLES if len(example.options) == 1] + [
    Example((text,), (word,), 0) for text, word in (("the", "tea"), ("so " * 20 + "it is", "not"))
]
STOCK: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 32, "num_key_value_heads": 1, "hidden_size": 16,
              "num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 128},
    "gemma2": {"intermediate_size": 32, "num_key_value_heads": 1, "hidden_size": 16, "head_dim": 8,
               "num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 128,
               "sliding_window": 8},
    "bloom": {"hidden_size": 16, "n_head": 2, "n_layer": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    wide = {"model__config__n_positions": 128}
    made = {"mlstm": ("mlstm", {}), "gpt2": ("transformer", wide),
            "gram": ("transformer", {"head__kind": "gram", **wide})}  # fmt: skip
    return {
        name: exported(tmp_path_factory.mktemp(name), kind, **changes).export_folder
        for name, (kind, changes) in made.items()
    }


def sharpened(model: Any, factor: float = 4) -> Any:
    """Larger weights, so that a token that is seen or not makes a difference."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(factor)
    return model


@pytest.fixture(scope="module", params=["mlstm", "gpt2", *STOCK])
def model(request: pytest.FixtureRequest, exports: dict[str, Path]) -> CausalLM:
    if request.param in exports:
        found = CausalLM.load(exports[request.param], "cpu")
        # A recurrence with much larger weights is chaotic: fp32 and float64 go different ways.
        sharpened(found.model, 1.5 if found.recurrent else 4)
        return found
    torch.manual_seed(1)
    tokenizer = CausalLM.load(exports["gpt2"], "cpu").tokenizer
    config = AutoConfig.for_model(request.param, vocab_size=300, **STOCK[request.param])
    net = sharpened(AutoModelForCausalLM.from_config(config))
    return CausalLM(net, tokenizer, torch.device("cpu"))


@torch.no_grad()
def obvious(model: CausalLM, example: Example) -> Judgement:
    """A forward in float64 for each option, from the texts on."""
    net = model.model.double()
    log_probs, greedy = [], []
    for context, option in zip(example.contexts, example.options, strict=True):
        ids = model.tokenizer(f"{context} {option}")["input_ids"]
        start = len(model.tokenizer(context.rstrip())["input_ids"])
        after = net(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        places = range(start, len(ids))
        log_probs.append(sum(float(after[at - 1, ids[at]]) for at in places))
        greedy.append(all(int(after[at - 1].argmax()) == ids[at] for at in places))
    net.float()
    return Judgement(np.array(log_probs), np.array(greedy))


def check(model: CausalLM, examples: list[Example]) -> bool:
    found, once = judge(model, make_requests(model, examples, [""] * len(examples)))
    for example, judgement in zip(examples, found, strict=True):
        expected = obvious(model, example)
        np.testing.assert_allclose(judgement.log_prob, expected.log_prob, rtol=2e-5, atol=1e-4)
        np.testing.assert_array_equal(judgement.greedy, expected.greedy)
    return once


@pytest.mark.parametrize("batch_tokens", [1, 300, 4096])
def test_as_one_option_after_the_other(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    monkeypatch.setitem(scoring._BATCH_TOKENS, "cpu", batch_tokens)
    monkeypatch.setattr(scoring, "_STREAMED_EXAMPLES", 1 + batch_tokens // 200)
    monkeypatch.setattr(scoring, "_STREAMED_STEPS", 3 if batch_tokens == 300 else 128)
    once = check(model, EXAMPLES)
    # A sliding window needs a mask of its own, and Bloom's positions are not ours to set.
    assert once == (model.model.config.model_type not in ("gemma2", "bloom"))


def test_single_options_too(model: CausalLM) -> None:
    assert check(model, SINGLE) == model.recurrent


def test_the_scores_of_another_head_are_used(exports: dict[str, Path]) -> None:
    model = CausalLM.load(exports["gram"], "cpu")
    if not getattr(model.model.config, "has_probabilities", True):
        pytest.skip("this head gives no probabilities")
    assert check(model, EXAMPLES)


def test_a_model_that_heeds_no_positions_reads_each_option_alone(exports: dict[str, Path]) -> None:
    class Deaf(GPT2LMHeadModel):
        def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    known = CausalLM.load(exports["gpt2"], "cpu")
    deaf = Deaf(known.model.config)
    deaf.load_state_dict(known.model.state_dict())
    assert check(CausalLM(sharpened(deaf), known.tokenizer, torch.device("cpu")), EXAMPLES) is False


def test_what_is_shared_is_laid_out_once() -> None:
    options = [Option([5, 6, 7, 8, 9], 2), Option([5, 6, 7, 8, 4, 3], 3)]
    request = Request(options, False)
    assert (shared(options), width(request)) == (3, 3 + 1 + 2)
    layout = lay_out([request, Request([Option([1, 2], 1)], False)])
    assert layout.prefix.tolist() == [[5, 6, 7], [0, 0, 1]]
    assert layout.tails.tolist() == [[[8, 0], [8, 4]], [[0, 0], [0, 0]]]
    assert layout.targets.tolist() == [8, 9, 8, 4, 3, 2]
    assert layout.judged.tolist() == [
        [0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 1, 2], [1, 0, 0],
    ]  # fmt: skip
    assert layout.longest == 5


@torch.no_grad()
def test_the_window_keeps_the_end(exports: dict[str, Path], tmp_path: Path) -> None:
    """A Transformer of 32 positions judges what it would after the last 32 tokens alone."""
    model = CausalLM.load(exported(tmp_path, "transformer").export_folder, "cpu")
    example = Example(("so nice " * 40,) * 2, ("tea", "warm milk"), 0)
    requests = make_requests(model, [example], [""])
    assert requests[0].cut
    assert [len(option.ids) for option in requests[0].options] == [33, 33]
    found = judge(model, requests)[0][0].log_prob
    for option, log_prob in zip(requests[0].options, found, strict=True):
        logits = model.model(torch.tensor([option.ids[:-1]])).logits[0].log_softmax(-1)
        expected = [float(logits[at - 1, option.ids[at]]) for at in range(33 - option.judged, 33)]
        assert log_prob == pytest.approx(sum(expected), abs=1e-4)
    long = Example(("so",), ("nice " * 40,), 0)
    with pytest.raises(DataError, match="an option of .* tokens, the model has 32 positions"):
        make_requests(model, [long], [""])
