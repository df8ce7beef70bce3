"""What a recipe's sparsity comes to for a model: matrices, counts, and what is refused."""

from __future__ import annotations

import pytest
import torch

from data_prep.errors import RecipeError
from data_prep.recipe.loader import validate
from pipeline.clock import Clock
from pipeline.heads.softmax import SoftmaxHead
from pipeline.models.build import build_backbone
from pipeline.models.mlstm.cell import NormedMatrix
from pipeline.protocols import Backbone, Head
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.sparsity import SparsityConfig
from pipeline.sparsity.design import Design, design
from pipeline.sparsity.linear import EXECUTORS, SparseLinear
from pipeline.sparsity.mixed import MixedSparsity
from pipeline.train.module import TrainModule

torch.set_num_threads(1)
WINDOW = 32


def built(architecture: str = "gpt2", **config: object) -> tuple[Backbone, Head]:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "attn_pdrop": 0.0}
    llama = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    config = {**(sizes if architecture == "gpt2" else llama), **config}
    model = {"kind": "transformer", "architecture": architecture, "config": config}
    backbone = build_backbone(validate(ModelConfig, model, "model"), 64, WINDOW, {})
    return backbone, bound(backbone)


def bound(backbone: Backbone) -> Head:
    head = SoftmaxHead()
    head.bind(backbone.output_weight(), backbone.output_bias())
    return head


def designed(backbone: Backbone, head: Head, **keys: object) -> Design:
    section = validate(SparsityConfig, {"kind": "mixed", **keys}, "sparsity")
    return design(section, backbone, head, WINDOW)


def test_every_linear_layer_but_embeddings_and_head_is_masked() -> None:
    names = [matrix.name for matrix in designed(*built()).matrices]
    assert names[:4] == [
        f"transformer.h.0.{part}"
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert len(names) == 8
    names = [matrix.name for matrix in designed(*built("llama")).matrices]
    assert len(names) == 14 and not any("lm_head" in n or "embed" in n for n in names)


def test_modules_are_chosen_by_name_and_an_unknown_one_is_answered_with_those_there_are() -> None:
    backbone, head = built()
    found = designed(backbone, head, modules=["transformer.h.*.mlp.*"], mask_head=True)
    assert [matrix.name.rpartition(".h.")[2] for matrix in found.matrices] == [
        "0.mlp.c_fc", "0.mlp.c_proj", "1.mlp.c_fc", "1.mlp.c_proj", "head",
    ]  # fmt: skip
    with pytest.raises(
        RecipeError,
        match=r"'\*.fc' matches nothing; modules with a matrix are "
        r"transformer.h.\*.attn.c_attn, ",
    ) as caught:
        designed(backbone, head, modules=["*.fc"])
    assert str(caught.value).count("attn.c_attn") == 1  # once for all layers


def test_a_block_that_does_not_divide_is_refused_with_the_layer() -> None:
    with pytest.raises(RecipeError, match=r"sparsity.block=64 does not divide the 32 x 96 matrix "
                                          r"of transformer.h.0.attn.c_attn"):  # fmt: skip
        designed(*built(), block=64)


def test_counts_of_a_model_by_hand() -> None:
    backbone, head = built()
    d, layers = 32, 2
    blocks, attention = 6.0 * layers * 12 * d * d, 3.0 * layers * 2 * WINDOW * d
    found = designed(backbone, head, densities="uniform", attention={"window": 4})
    assert found.dense == (blocks, attention, 6.0 * 64 * d)
    active = [m.size // 4 for m in found.matrices]
    assert found.count(found.dense, active, False, False).blocks == pytest.approx(blocks / 4)
    # Scoring: forward and input gradient of what is active, the whole gradient of the weights.
    assert found.count(found.dense, active, False, True).blocks == pytest.approx(
        blocks * (2 / 4 + 1) / 3
    )
    assert found.pattern is not None
    sparse = found.count(found.dense, active, True, False)
    assert sparse.attention == pytest.approx(attention * found.pattern.share(WINDOW))
    assert sparse.head == found.dense.head


def test_the_share_of_a_plan_by_hand() -> None:
    phases = [
        {"name": "a", "until": 0.5, "density": 0.5, "drop_fraction": 0.0},
        {"name": "b", "until": 1.0, "density": 1.0},
    ]
    found = designed(*built(), phases=phases, densities="uniform", attention=None)
    dense = found.dense
    wanted = (0.75 * dense.blocks + dense.attention + dense.head) / dense.total
    assert found.flops_share(found.plan) == pytest.approx(wanted, rel=1e-3)


def test_gpt2_small_meets_a_quarter_only_with_its_head_masked() -> None:
    with torch.device("meta"):
        backbone = build_backbone(
            validate(ModelConfig, {"kind": "transformer"}, "model"), 50304, 1024, {}
        )
        head = bound(backbone)
    section = validate(SparsityConfig, {"kind": "mixed", "flops": 0.25, "mask_head": True}, "")
    found = design(section, backbone, head, 1024)
    assert found.flops_share(found.plan) == pytest.approx(0.25, abs=0.002)
    assert found.dense.head / found.dense.total == pytest.approx(0.29, abs=0.01)
    section = validate(SparsityConfig, {"kind": "mixed", "flops": 0.25}, "")
    with pytest.raises(RecipeError, match=r"this plan can use 0.4\d+ to"):
        design(section, backbone, head, 1024)


def plugin_for(backbone: Backbone, head: Head, **keys: object) -> MixedSparsity:
    section = validate(SparsityConfig, {"kind": "mixed", **keys}, "sparsity")
    plugin = MixedSparsity(section, 100, WINDOW, 64, seed=1, beta2=0.95)
    plugin.setup(TrainModule(backbone, head))
    return plugin


def test_layers_are_replaced_in_place_and_names_stay() -> None:
    backbone, head = built("llama")
    before = {name: p for name, p in backbone.named_parameters()}
    plugin = plugin_for(backbone, head, block=16)
    after = dict(backbone.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in after)
    swapped = [m for m in backbone.modules() if isinstance(m, SparseLinear)]
    assert len(swapped) == len(plugin.matrices) == 14
    for matrix in plugin.matrices:
        off = ~matrix.full_mask(torch.device("cpu"))
        assert not matrix.parameter.detach()[off].any()
    assert sum(m.active for m in plugin.matrices) == pytest.approx(
        0.5 * sum(m.size for m in plugin.matrices), rel=0.1
    )


def test_an_executor_for_layers_that_are_none_is_refused() -> None:
    mlstm = {"kind": "mlstm", "hidden": 16, "embedding": 8}
    backbone = build_backbone(validate(ModelConfig, mlstm, "model"), 64, WINDOW, {})
    assert any(isinstance(m, NormedMatrix) for m in backbone.modules())
    with pytest.raises(RecipeError, match="'auto' matches nothing; modules with a matrix are "
                                          r"mlstm.*w_mx, .*w_h"):  # fmt: skip
        plugin_for(backbone, bound(backbone))
    with pytest.raises(RecipeError, match="executor=gather computes linear layers"):
        plugin_for(backbone, bound(backbone), modules=["*.w_h"], block=8, executor="gather")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_choice_that_cannot_be_followed_any_more_is_made_anew(dtype: torch.dtype) -> None:
    """A checkpoint of fp32 goes on in bf16, where sums cannot grow block by block."""
    phases = [{"name": "sparse", "until": 1.0, "density": 0.25, "drop_fraction": 0.0}]
    plugin = plugin_for(*built(), block=16, phases=phases, attention=None, executor="auto")
    blocks = list(EXECUTORS).index("blocks")
    saved = torch.full((1, len(plugin.matrices)), blocks, dtype=torch.int8)
    for matrix in plugin.matrices:
        matrix.module.to(dtype)
    plugin._executors.load({"executors": saved})
    plugin.before_iteration(None, Clock())  # type: ignore[arg-type]  # no engine is asked
    chosen = plugin._executors.state()["executors"]
    assert (chosen == blocks).all() if dtype is torch.float32 else not (chosen == blocks).any()


def test_attention_that_cannot_be_made_sparse_is_refused_before_training() -> None:
    backbone, head = built(attn_pdrop=0.1)
    with pytest.raises(RecipeError, match="attention dropout 0.1, expected 0"):
        plugin_for(backbone, head)
    plugin_for(*built(attn_pdrop=0.1), attention=None)
