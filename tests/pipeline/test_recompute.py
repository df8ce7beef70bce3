"""Activations computed again in backward: the same numbers, less kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_prep.errors import RecipeError
from pipeline.models.build import build_backbone
from pipeline.models.mlstm import cell
from pipeline.models.transformer import TransformerBackbone
from pipeline.plan.memory import activations_of
from pipeline.recipe import load_recipe
from pipeline.recipe.model import MLSTMConfig, TransformerConfig
from tests.pipeline.tiny import write_recipe

torch.set_num_threads(1)
WINDOW = 16
SECTIONS: dict[str, Any] = {
    "mlstm": MLSTMConfig(kind="mlstm", hidden=12, embedding=6, layers=2),
    "gpt2": TransformerConfig(
        kind="transformer",
        config={"n_layer": 6, "n_head": 2, "n_embd": 16, "n_positions": WINDOW},
    ),
    "llama": TransformerConfig(
        kind="transformer", architecture="llama",
        config={"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24,
                "num_attention_heads": 2, "max_position_embeddings": WINDOW},
    ),
}  # fmt: skip


def through(name: str, recompute: bool, resets: bool = False) -> tuple[list[Tensor], int]:
    """Hidden states, state and gradients of a training pass, dropout on, and the bytes kept."""
    torch.manual_seed(0)
    backbone = build_backbone(SECTIONS[name], 40, WINDOW, {}).train()
    if recompute:
        backbone.recompute_activations()
    ids = torch.randint(40, (3, WINDOW))
    state = backbone.initial_state(3, torch.device("cpu"))
    state = None if state is None else torch.randn_like(state)
    at = torch.rand(3, WINDOW) < 0.2 if resets else None
    weights = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden, after = backbone(ids, state, at)
    size = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)
    hidden.square().sum().backward()
    gradients = [p.grad for p in backbone.parameters() if p.grad is not None]
    return [hidden.detach(), *([] if after is None else [after]), *gradients], size


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("steps", [1, 5, 16, 100])
def test_an_mlstm_computes_the_same_in_parts(
    steps: int, resets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell, "RECOMPUTED_STEPS", steps)
    found, wanted = (through("mlstm", again, resets)[0] for again in (True, False))
    assert len(found) == len(wanted) > 10
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_transformer_computes_the_same_and_keeps_less(name: str) -> None:
    (found, kept), (wanted, all_kept) = through(name, True), through(name, False)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert kept < all_kept / 2


def test_an_architecture_that_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_backbone(SECTIONS["gpt2"], 40, WINDOW, {})
    assert isinstance(backbone, TransformerBackbone)
    monkeypatch.setattr(type(backbone.causal_lm), "supports_gradient_checkpointing", False)
    with pytest.raises(RecipeError, match="activation_checkpointing: GPT2LMHeadModel does not"):
        backbone.recompute_activations()


@pytest.mark.parametrize("kind", ["mlstm", "transformer"])
def test_the_plan_tells_what_it_saves(tmp_path: Path, kind: str) -> None:
    changes = ["batch.window_tokens=256"]
    if kind == "transformer":
        changes += ["model.config.n_positions=256", "model.config.n_layer=8"]
    path = write_recipe(tmp_path, kind)
    plain, again = (
        activations_of(load_recipe(path, [*changes, f"engine.activation_checkpointing={on}"]), 4)
        for on in ("false", "true")
    )
    assert 0.05 * plain < again < 0.5 * plain


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_mlstm_of_one_lane_does_it_too(lanes: int) -> None:
    """The transpose of one lane is contiguous as it lies, in a buffer that is used again."""

    def gradients(again: bool) -> list[Tensor]:
        torch.manual_seed(0)
        backbone = build_backbone(SECTIONS["mlstm"], 40, 256, {}).train()
        if again:
            backbone.recompute_activations()
        state = backbone.initial_state(lanes, torch.device("cpu"))
        ids = torch.arange(lanes * 256).view(lanes, 256) % 40
        hidden, last = backbone(ids, state, None)
        (hidden.square().sum() + last.sum()).backward()
        return [p.grad for p in backbone.parameters() if p.grad is not None]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
