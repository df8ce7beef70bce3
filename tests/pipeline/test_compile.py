"""`engine.compile`: the same numbers, one compiled code for all layers, and where it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data_prep.errors import RecipeError
from pipeline.models import compile as compiling
from pipeline.models.build import build_backbone
from pipeline.recipe import load_recipe
from pipeline.recipe.model import TransformerConfig
from tests.pipeline.tiny import write_recipe

SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 3, "n_head": 2, "n_embd": 16, "n_positions": 8, "resid_pdrop": 0.0,
             "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 16,
              "intermediate_size": 32, "max_position_embeddings": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_compiled_layers_compute_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def traced(graph: Any, inputs: Any) -> Any:
        """What Inductor would be handed: tracing is what can go wrong here, and costs no minute."""
        graphs.append(graph)
        return graph.forward

    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda m, **keys: real(m, backend=traced, **keys))
    torch.manual_seed(0)
    section = TransformerConfig(kind="transformer", architecture=name, config=SIZES[name])
    backbone = build_backbone(section, 40, 8, {})
    ids = torch.randint(40, (2, 8))
    names = list(backbone.state_dict())

    def through() -> list[torch.Tensor]:
        hidden, _ = backbone(ids, None, None)
        gradients = torch.autograd.grad(hidden.square().sum(), list(backbone.parameters())[:-1],
                                        allow_unused=True)  # fmt: skip
        return [hidden.detach(), *(g for g in gradients if g is not None)]

    wanted = through()
    compiling.compile_layers(backbone.causal_lm)
    torch.testing.assert_close(through(), wanted, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1  # three layers
    assert list(backbone.state_dict()) == names


def test_layers_that_are_not_known_are_refused() -> None:
    with pytest.raises(RecipeError, match="the layers of Linear are not known"):
        compiling.compile_layers(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [("mlstm", [], "kernels of its own"), ("transformer", ["engine.zero_stage=3"], "layer by"),
     ("transformer", ["sparsity={kind: mixed, plan: mst, flops: 0.9}"], "masks change")],
)  # fmt: skip
def test_where_it_cannot_work_it_is_refused(
    tmp_path: Path, kind: str, changes: list[str], reason: str
) -> None:
    path = write_recipe(tmp_path, kind)
    with pytest.raises(RecipeError, match=f"engine.compile with .*{reason}"):
        load_recipe(path, ["engine.compile=true", *changes])
