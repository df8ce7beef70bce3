"""The DeepSpeed JSON: our templates fit, contradictions and misspellings are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import RecipeError
from pipeline.recipe import Recipe
from pipeline.recipe.deepspeed import (
    DEEPSPEED_OWNS,
    RECIPE_OWNS,
    derive_deepspeed,
    resolve_dtype,
    template_path,
)
from tests.pipeline.tiny import recipe_tree

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "ds_configs").glob("*.json"))


def make(tmp_path: Path, template: Any = None, **changes: Any) -> Recipe:
    """The tiny recipe (8 = 2 x 4) with a template of this content or at this path."""
    if template is not None:
        if not isinstance(template, Path):
            path = tmp_path / "template.json"
            path.write_text(template if isinstance(template, str) else json.dumps(template))
            template = path
        changes["engine__template"] = str(template)
    return Recipe.model_validate(recipe_tree(tmp_path, "gpt2", **changes), strict=False)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_every_template_fits_its_stage(tmp_path: Path, template: Path, dtype: str) -> None:
    stage = int(template.stem.removeprefix("zero")[0])
    recipe = make(tmp_path, template, engine__zero_stage=stage)
    config = derive_deepspeed(recipe, 2, dtype)
    assert "auto" not in json.dumps(config)
    assert config["zero_optimization"]["stage"] == stage
    assert (config["fp16"]["enabled"], config["bf16"]["enabled"]) == (
        dtype == "fp16", dtype == "bf16",
    )  # fmt: skip
    assert set(config) <= {*DEEPSPEED_OWNS, *(key.partition(".")[0] for key in RECIPE_OWNS)}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_says_what_deepspeed_did_with_it(tmp_path: Path, template: Path) -> None:
    """What the template itself sets is passed on unchanged, but that a run has its own disk."""
    stage = int(template.stem.removeprefix("zero")[0])
    recipe = make(tmp_path, template, engine__zero_stage=stage)
    config = derive_deepspeed(recipe, 1, "fp32")
    own = json.loads(template.read_text())["zero_optimization"]
    if path := own.get("offload_optimizer", {}).get("nvme_path"):
        own["offload_optimizer"]["nvme_path"] = f"{path}/{recipe.run.name}"
    assert {**config["zero_optimization"], "stage": "auto"} == own


@pytest.mark.parametrize("stage", range(4))
def test_a_stage_finds_its_template(tmp_path: Path, stage: int) -> None:
    path = template_path(make(tmp_path, engine__zero_stage=stage))
    assert path == ROOT / "ds_configs" / f"zero{stage}.json" and path.is_file()


@given(world=st.integers(1, 6), micro=st.integers(1, 6), accumulation=st.integers(1, 6))
def test_accumulation_is_what_is_left_of_the_batch(
    world: int, micro: int, accumulation: int
) -> None:
    batch = {"batch__global_batch": world * micro * accumulation, "batch__micro_batch": micro}
    config = derive_deepspeed(make(Path("x"), **batch), world, "fp32")
    assert config["train_micro_batch_size_per_gpu"] == micro
    assert config["gradient_accumulation_steps"] == accumulation
    assert config["train_batch_size"] == world * micro * accumulation


def test_a_batch_with_a_rest_is_refused(tmp_path: Path) -> None:
    words = "global_batch=8 does not divide into 3 devices x batch.micro_batch=2"
    with pytest.raises(RecipeError, match=words):
        derive_deepspeed(make(tmp_path), 3, "fp32")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"train_batch_size": 7}, "train_batch_size=7 .*batch.global_batch=8"),
        ({"train_batch_size": "8"}, r"train_batch_size='8' \(str\) .*=8 \(int\)"),
        ({"train_micro_batch_size_per_gpu": True}, r"=True \(bool\) .*batch.micro_batch=2"),
        ({"gradient_accumulation_steps": 3}, r"=3 .*batch \(derived\)=4"),
        ({"gradient_clipping": 0.5}, "=0.5 .*optim.gradient_clip_norm=1.0"),
        ({"zero_optimization": {"stage": 2}}, "stage=2 .*engine.zero_stage=1"),
        ({"zero_optimization": {"stage": True}}, r"stage=True \(bool\) .*engine.zero_stage=1"),
        ({"fp16": {"enabled": True}}, "fp16.enabled=True .*precision.dtype=False"),
        ({"bf16": {"enabled": 0}}, r"bf16.enabled=0 \(int\) .*precision.dtype=False \(bool\)"),
        ({"train_batch_size": None}, "train_batch_size=None"),
    ],
)
def test_a_contradiction_names_both_places(tmp_path: Path, template: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        derive_deepspeed(make(tmp_path, template, engine__zero_stage=1), 1, "fp32")
    assert str(tmp_path / "template.json") in str(caught.value)


def test_values_that_agree_with_the_recipe_may_stand(tmp_path: Path) -> None:
    template = {
        "train_batch_size": 8, "gradient_clipping": 1, "zero_optimization": {"stage": 1},
        "bf16": {"enabled": True},
    }  # fmt: skip
    config = derive_deepspeed(make(tmp_path, template, engine__zero_stage=1), 2, "bf16")
    assert config["train_batch_size"] == 8 and config["bf16"]["enabled"] is True


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"zero_optimisation": {}}, "'zero_optimisation'; did you mean 'zero_optimization'"),
        ({"gradient_cliping": 1.0}, "did you mean 'gradient_clipping'"),
        ({"q": 1}, "unknown DeepSpeed key 'q'; known keys are .*zero_optimization"),
        ({"optimizer": {"type": "Adam"}}, "'optimizer' is owned by the recipe's optim section"),
        ({"scheduler": {}}, "'scheduler' is owned by the recipe's optim section"),
        ({"amp": {}}, "'amp' is owned by precision.dtype"),
        ({"bf16": True}, "bf16=True: expected an object"),
        ({"zero_optimization": 2}, "zero_optimization=2: expected an object"),
        ('{"bf16": ', "is not valid JSON"),
        ("[1, 2]", "holds list, expected an object"),
        (Path("absent.json"), "absent.json does not exist"),
    ],
)
def test_what_is_no_template_is_refused(tmp_path: Path, template: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        derive_deepspeed(make(tmp_path, template), 1, "fp32")


def test_fp16_takes_its_scale_from_the_recipe(tmp_path: Path) -> None:
    changes = {
        "precision__initial_scale_power": 9, "precision__scale_window": 55,
        "precision__hysteresis": 3,
    }  # fmt: skip
    config = derive_deepspeed(make(tmp_path, **changes), 1, "fp16")
    assert config["fp16"] == {
        "enabled": True, "loss_scale": 0, "initial_scale_power": 9, "loss_scale_window": 55,
        "hysteresis": 3, "min_loss_scale": 1,
    }  # fmt: skip
    assert derive_deepspeed(make(tmp_path), 1, "fp32")["fp16"] == {"enabled": False}


def test_the_recipe_is_not_changed_by_deriving(tmp_path: Path) -> None:
    recipe = make(tmp_path)
    before = recipe.to_yaml()
    assert derive_deepspeed(recipe, 1, "bf16") == derive_deepspeed(recipe, 1, "bf16")
    assert recipe.to_yaml() == before


@pytest.mark.parametrize(
    ("asked", "has_bf16", "used"),
    [("auto", True, "bf16"), ("auto", False, "fp32"), ("fp16", True, "fp16"),
     ("fp32", True, "fp32"), ("bf16", False, "bf16")],
)  # fmt: skip
def test_auto_takes_bf16_where_a_gpu_has_it(
    tmp_path: Path, asked: str, has_bf16: bool, used: str
) -> None:
    assert resolve_dtype(make(tmp_path, precision__dtype=asked), cuda_bf16=has_bf16) == used
