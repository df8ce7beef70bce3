"""What a template may ask of DeepSpeed: each key takes real steps, and they are the plain ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import RecipeError
from pipeline.recipe import Recipe
from pipeline.recipe.deepspeed import derive_deepspeed, template_path
from pipeline.train.engine import check_config, check_machine
from tests.distributed.test_engine import accumulate, full, make_engine, reference
from tests.pipeline.tiny import recipe_tree
from tests.ranks import run_ranks

LONG = pytest.mark.long
CPU = {"device": "cpu"}
EXACT, HALF = 2e-6, 2e-2


def rank_steps(rank: int, config: dict[str, Any]) -> list[torch.Tensor]:
    engine = make_engine(config["zero_optimization"]["stage"], config=config)
    for step in range(4):
        accumulate(engine, step)
        assert engine.step().value == "applied"
    return full(engine)


def steps(folder: Path, stage: int, zero: dict[str, Any], top: dict[str, Any]) -> list[Any]:
    """Parameters on both ranks after four steps of a recipe whose template has these keys."""
    path = folder / "template.json"
    template = {"zero_optimization": {"stage": "auto", **zero},
                "zero_allow_untested_optimizer": True, **top}  # fmt: skip
    path.write_text(json.dumps(template))
    tree = recipe_tree(folder, "mlstm", engine__template=str(path), engine__zero_stage=stage)
    recipe = Recipe.model_validate(tree, strict=False)
    config = derive_deepspeed(recipe, 2, "fp32")
    check_config(config, template_path(recipe))
    check_machine(config)
    return run_ranks(2, rank_steps, config)


@pytest.mark.parametrize(
    ("stage", "zero", "top", "tolerance"),
    [
        (2, {"overlap_comm": True, "reduce_bucket_size": 16, "allgather_bucket_size": 16}, {},
         EXACT),
        (2, {"offload_optimizer": CPU}, {"zero_force_ds_cpu_optimizer": False}, EXACT),
        (3, {"zero_hpz_partition_size": 2}, {}, EXACT),
        (1, {}, {"communication_data_type": "bf16"}, HALF),
        pytest.param(0, {}, {"communication_data_type": "bf16"}, HALF, marks=LONG),
        pytest.param(2, {}, {"communication_data_type": "fp16"}, HALF, marks=LONG),
        pytest.param(3, {}, {"communication_data_type": "bf16"}, HALF, marks=LONG),
        pytest.param(1, {"overlap_comm": True}, {}, EXACT, marks=LONG),
        pytest.param(3, {"overlap_comm": True, "reduce_bucket_size": 16}, {}, EXACT, marks=LONG),
        pytest.param(2, {"contiguous_gradients": False}, {}, EXACT, marks=LONG),
        pytest.param(2, {"reduce_scatter": False}, {}, EXACT, marks=LONG),
        pytest.param(0, {}, {"prescale_gradients": True}, EXACT, marks=LONG),
        pytest.param(0, {}, {"prescale_gradients": True, "gradient_predivide_factor": 2.0},
                     EXACT, marks=LONG),
        pytest.param(1, {"offload_optimizer": CPU}, {"zero_force_ds_cpu_optimizer": False},
                     EXACT, marks=LONG),
        pytest.param(3, {"offload_optimizer": CPU}, {"zero_force_ds_cpu_optimizer": False},
                     EXACT, marks=LONG),
        pytest.param(3, {"offload_param": CPU}, {}, EXACT, marks=LONG),
        pytest.param(3, {"stage3_prefetch_bucket_size": 8, "stage3_max_live_parameters": 8,
                         "stage3_max_reuse_distance": 8, "stage3_param_persistence_threshold": 0,
                         "sub_group_size": 16}, {}, EXACT, marks=LONG),
        pytest.param(3, {"zero_quantized_gradients": True}, {}, EXACT, marks=LONG),
    ],
    ids=str,
)  # fmt: skip
def test_its_steps_are_the_plain_ones(
    tmp_path: Path, stage: int, zero: dict[str, Any], top: dict[str, Any], tolerance: float
) -> None:
    wanted = reference(4, clip=1.0)
    for parameters in steps(tmp_path, stage, zero, top):
        for mine, theirs in zip(parameters, wanted.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("stage", "key", "words"),
    [(2, "round_robin_gradients", "in the old order: remove it"),
     (3, "zero_quantized_weights", "quantises on GPUs only, and none was found")],
)  # fmt: skip
def test_what_would_be_wrong_or_cannot_run_is_refused(
    tmp_path: Path, stage: int, key: str, words: str
) -> None:
    if torch.cuda.is_available() and key == "zero_quantized_weights":
        pytest.skip("there is a GPU to quantise on")
    with pytest.raises(RecipeError, match=f"zero_optimization.{key}: .*{words}"):
        steps(tmp_path, stage, {key: True}, {})


@pytest.mark.parametrize(
    ("stage", "changes"),
    [(0, {"data_types": {"grad_accum_dtype": "fp32"}}),
     (1, {"data_types": {"grad_accum_dtype": "fp32"}}),
     (1, {"bf16": {"enabled": "auto", "bf16_master_weights_and_grads": True}}),
     (2, {"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}})],
    ids=str,
)  # fmt: skip
def test_optimizers_that_could_not_be_saved_are_refused_at_the_start(
    tmp_path: Path, stage: int, changes: dict[str, Any]
) -> None:
    template = tmp_path / "template.json"
    template.write_text(json.dumps({"zero_optimization": {"stage": "auto"}} | changes))
    engine = {"zero_stage": stage, "template": str(template)}
    recipe = Recipe.model_validate(recipe_tree(tmp_path, "transformer", engine=engine))
    config = derive_deepspeed(recipe, 1, "bf16")
    with pytest.raises(RecipeError, match="such weights could not be saved; remove the key"):
        check_config(config, template)
