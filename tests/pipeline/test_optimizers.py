"""Optimizers by name: real steps, and what is refused."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data_prep.errors import RecipeError
from pipeline.optim.build import build_optimizer
from pipeline.optim.registry import optimizer_class
from pipeline.preflight import dry_run
from pipeline.recipe import load_recipe
from pipeline.recipe.optim import OptimConfig
from tests.pipeline.tiny import write_recipe

OF_TORCH = ["sgd", "Adam", "adamw", "NAdam", "radam", "adamax", "adadelta", "rmsprop",
            "asgd", "adafactor", "muon"]  # fmt: skip
OF_LIBRARY = ["lion", "lamb", "lars", "adabelief", "adan", "soap", "shampoo", "came"]
OF_EIGHT_BITS = ["bnb_adamw8bit", "bnb_lion8bit", "ao_adamw8bit", "ao_adamw4bit"]


def fall(name: str, **options: Any) -> float:
    """The share of a loss that twenty steps leave."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    x, y = torch.randn(64, 6), torch.randn(64, 2)
    optimizer = build_optimizer(OptimConfig(lr=0.02, name=name, options=options), model)
    found = []
    for _ in range(20):
        loss = (model(x) - y).square().mean()
        found.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found[-1] / found[0]


@pytest.mark.parametrize("name", OF_TORCH)
def test_those_of_torch_take_steps_that_lower_a_loss(name: str) -> None:
    assert fall(name) < 1


@pytest.mark.parametrize("name", OF_LIBRARY)
def test_those_of_the_library_too(name: str) -> None:
    pytest.importorskip("pytorch_optimizer")
    assert fall(name) < 1


@pytest.mark.parametrize("name", OF_EIGHT_BITS)
def test_small_states_lower_a_loss_and_are_saved_as_plain_tensors(name: str) -> None:
    library = {"bnb": "bitsandbytes", "ao": "torchao"}[name.split("_")[0]]
    pytest.importorskip(library)
    torch.manual_seed(0)
    model = nn.Linear(64, 128)
    x, y = torch.randn(64, 64), torch.randn(64, 128)
    optimizer = build_optimizer(OptimConfig(lr=0.01, name=name), model)
    found = []
    for _ in range(10):
        loss = (model(x) - y).square().mean()
        found.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found[-1] < found[0]
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    assert file.tell() < 4 * model.weight.numel()  # two moments in less than one of fp32
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))


def test_without_a_library_of_small_states_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(RecipeError, match="pip install bitsandbytes"):
        optimizer_class("bnb_adamw8bit")
    with pytest.raises(RecipeError, match="pip install torchao"):
        optimizer_class("ao_adamw4bit")


class Tables(nn.Module):
    """An embedding, a hidden matrix with a bias, and a matrix of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.hidden = nn.Linear(4, 4)
        self.cube = nn.Parameter(torch.randn(2, 4, 4))


def test_muon_turns_hidden_matrices_and_adam_moves_the_rest() -> None:
    torch.manual_seed(0)
    module, twin = Tables(), Tables()
    twin.load_state_dict(module.state_dict())
    section = OptimConfig(lr=0.1, name="muon", weight_decay=0.2, options={"momentum": 0.9})
    optimizer = build_optimizer(section, module)
    adam = torch.optim.AdamW(
        [{"params": [twin.embedding.weight, twin.cube], "weight_decay": 0.2},
         {"params": [twin.hidden.bias], "weight_decay": 0.0}], lr=0.1,
    )  # fmt: skip
    muon = torch.optim.Muon(
        [twin.hidden.weight], lr=0.1, weight_decay=0.2, momentum=0.9,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    for step in range(4):
        for model in (module, twin):
            (model.hidden(model.embedding(torch.tensor([1, 2]))) @ model.cube).sum().backward()
        for each in (optimizer, adam, muon):
            each.step()
            each.zero_grad()
        if step == 1:  # a load replaces groups and state
            optimizer.load_state_dict(optimizer.state_dict())
    for (name, ours), theirs in zip(module.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_options_reach_the_optimizer_and_decay_only_matrices() -> None:
    model = nn.Linear(3, 4)
    section = OptimConfig(
        lr=0.1, name="SGD", weight_decay=0.2, options={"momentum": 0.9, "nesterov": True}
    )
    optimizer = build_optimizer(section, model)
    assert isinstance(optimizer, torch.optim.SGD)
    assert [(g["weight_decay"], g["momentum"], g["nesterov"]) for g in optimizer.param_groups] == [
        (0.2, 0.9, True), (0.0, 0.9, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adamv", "did you mean 'adam"),
        ("lbfgs", "asks for the loss again"),
        ("adamuon", "matrices only; muon has AdamW beside it"),
        ("gsam", "goes through a batch twice, which optim.sam_rho does"),
        ("bnb_lamb8bit", "leaves out the ratio of norms"),
        ("sophiah", "second backward pass"),
        ("ScheduleFreeAdamW", "two sets of weights"),
    ],
)
def test_names_that_do_not_fit_are_refused(name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        optimizer_class(name)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(RecipeError, match="pip install pytorch_optimizer"):
        optimizer_class("lion")


def test_an_unknown_option_is_refused() -> None:
    section = OptimConfig(lr=0.1, name="sgd", options={"momentun": 0.9})
    with pytest.raises(
        RecipeError, match="optim.options.momentun: unknown to SGD; did you mean 'mom"
    ):
        build_optimizer(section, nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["sgd", "NAdam", "lion"])
def test_what_takes_every_weight_for_itself_goes_with_zero(name: str) -> None:
    if name == "lion":
        pytest.importorskip("pytorch_optimizer")
    assert optimizer_class(name, zero_stage=3) is optimizer_class(name)


@pytest.mark.parametrize("name", ["lamb", "adafactor", "muon"])
def test_zero_and_whole_matrices_are_refused_before_anything_is_built(
    tmp_path: Path, name: str
) -> None:
    path = write_recipe(tmp_path, "transformer", optim__name=name, engine__zero_stage=2)
    if name == "lamb":
        pytest.importorskip("pytorch_optimizer")
    with pytest.raises(RecipeError, match="flat slices .* engine.zero_stage=0, or engine.kind=ddp"):
        dry_run(load_recipe(path))
