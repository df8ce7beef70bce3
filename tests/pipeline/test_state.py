"""What is saved beside the weights: the identity of a run, random numbers, lanes."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from data_prep.errors import RecipeError, disk_trouble
from data_prep.shards import Prepared
from pipeline.recipe import Recipe
from pipeline.train import state
from pipeline.train.lanes import LaneStates
from pipeline.train.state import (
    FORMAT,
    check_fits,
    conversions,
    differences,
    identity,
    layout,
    load_rng,
    load_tensors,
    save_rng,
    save_tensors,
    write_trainer,
)
from tests.pipeline.tiny import recipe_tree

LAYOUT = {"comm_hook": "none", "world_size": 1}


def recipe(folder: Path = Path("x"), **changes: Any) -> Recipe:
    return Recipe.model_validate(recipe_tree(folder, "mlstm", **changes), strict=False)


PREPARED = cast(Prepared, SimpleNamespace(tokenizer_fingerprint="abc", fingerprint="def"))


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"model__hidden": 48}, ["model.hidden: 24 in the checkpoint, 48 now"]),
        ({"optim__lr": 0.5}, ["optim.lr: 0.01 in the checkpoint, 0.5 now"]),
        ({"run__seed": 6}, ["run.seed: 5 in the checkpoint, 6 now"]),
        ({"batch__global_batch": 4}, ["batch.global_batch: 8 in the checkpoint, 4 now"]),
        ({"run__steps": 9}, ["optim.decay_steps: 6 in the checkpoint, 9 now"]),
        # None of these change what is computed.
        ({"batch__micro_batch": 4}, []),
        ({"run__name": "other", "run__log_every_steps": 3}, []),
        ({"checkpoint__every_steps": 2, "eval__batch": 1}, []),
        ({"run__steps": 9, "optim__decay_steps": 6}, []),
        ({"optim__noise_every_steps": 3}, []),
    ],
)
def test_a_run_is_the_same_run_or_every_difference_is_named(
    changes: dict[str, Any], lines: list[str]
) -> None:
    saved = identity(recipe(), PREPARED, "fp32")
    assert differences(saved, identity(recipe(**changes), PREPARED, "fp32")) == lines


@pytest.mark.parametrize(
    "phased",
    [
        {"sparsity": {"kind": "mixed", "plan": "mst"}},
        {"head": {"kind": "phased", "phases": [
            {"until": 0.5, "head": {"kind": "gram", "loss": "taylor"}},
            {"until": 1.0, "head": {"kind": "softmax"}},
        ]}},
    ],
)  # fmt: skip
def test_phases_are_of_a_run_of_one_length(tmp_path: Path, phased: dict[str, Any]) -> None:
    def made(steps: int) -> Recipe:
        changes = {"run__steps": steps, "optim__decay": "none", **phased}
        return Recipe.model_validate(recipe_tree(Path("x"), "transformer", **changes))

    saved = identity(made(6), PREPARED, "fp32")
    lines = differences(saved, identity(made(9), PREPARED, "fp32"))
    assert lines == ["run.steps: 6 in the checkpoint, 9 now"]
    del saved["run"]["steps"]  # a checkpoint from before that was kept
    write_trainer(tmp_path, {"format": FORMAT, "identity": saved, **LAYOUT})
    check_fits(tmp_path, made(9), PREPARED, "fp32", 1)


def test_factors_of_another_rank_are_no_factors(tmp_path: Path) -> None:
    def made(rank: int) -> Recipe:
        engine = {"kind": "ddp", "comm_hook": "powersgd", "powersgd_rank": rank}
        return recipe(engine=engine)

    saved = identity(made(1), PREPARED, "fp32")
    write_trainer(tmp_path, {"format": FORMAT, "identity": saved, **layout(made(1), 2)})
    check_fits(tmp_path, made(1), PREPARED, "fp32", 2)
    with pytest.raises(RecipeError, match="powersgd_rank: 1 in the checkpoint, 2 now"):
        check_fits(tmp_path, made(2), PREPARED, "fp32", 2)


def test_a_key_that_is_newer_than_the_checkpoint_has_its_default(tmp_path: Path) -> None:
    saved = identity(recipe(), PREPARED, "fp32")
    del saved["optim"]["scaling"], saved["optim"]["name"], saved["model"]["forget_bias"]
    write_trainer(tmp_path, {"format": FORMAT, "identity": saved, **LAYOUT})
    check_fits(tmp_path, recipe(), PREPARED, "fp32", 1)
    with pytest.raises(RecipeError, match="optim.name: adamw in the checkpoint, sgd now"):
        check_fits(tmp_path, recipe(optim__name="sgd"), PREPARED, "fp32", 1)


def test_another_format_is_refused(tmp_path: Path) -> None:
    write_trainer(tmp_path, {"format": 1, "identity": identity(recipe(), PREPARED, "fp32")})
    with pytest.raises(RecipeError, match="saved in format 1, this version reads 2"):
        check_fits(tmp_path, recipe(), PREPARED, "fp32", 1)


def test_a_constant_rate_may_be_trained_for_longer() -> None:
    short, long = (recipe(optim__decay="none", run__steps=n) for n in (6, 60))
    assert identity(short, PREPARED, "fp32") == identity(long, PREPARED, "fp32")


def test_other_data_tokenizer_or_precision_is_another_run() -> None:
    saved = identity(recipe(), PREPARED, "fp32")
    other = cast(Prepared, SimpleNamespace(tokenizer_fingerprint="x", fingerprint="y"))
    found = [
        line.partition(":")[0] for line in differences(saved, identity(recipe(), other, "bf16"))
    ]
    assert found == ["data.fingerprint", "precision.dtype", "tokenizer.fingerprint"]


@pytest.mark.parametrize(
    ("saved", "now", "fits"), [("fp32", "bf16", True), ("fp32", "fp16", True),
                               ("bf16", "fp32", False), ("fp16", "bf16", False)],
)  # fmt: skip
def test_only_fp32_goes_on_in_another_precision(
    tmp_path: Path, saved: str, now: str, fits: bool
) -> None:
    write_trainer(
        tmp_path, {"format": FORMAT, "identity": identity(recipe(), PREPARED, saved), **LAYOUT}
    )
    if fits:
        check_fits(tmp_path, recipe(), PREPARED, now, 1)
    else:
        with pytest.raises(RecipeError, match=f"precision.dtype: {saved} in the checkpoint, {now}"):
            check_fits(tmp_path, recipe(), PREPARED, now, 1)


@pytest.mark.parametrize(
    ("hook", "ranks", "fits"),
    [("none", 2, True), ("none", 1, True), ("powersgd", 2, True), ("powersgd", 1, False)],
)
def test_what_a_hook_keeps_of_each_rank_needs_the_same_ranks(
    tmp_path: Path, hook: str, ranks: int, fits: bool
) -> None:
    now = recipe(engine__kind="ddp", engine__comm_hook=hook)
    layout = {"comm_hook": hook, "world_size": 2}
    write_trainer(
        tmp_path, {"format": FORMAT, "identity": identity(now, PREPARED, "fp32"), **layout}
    )
    if fits:
        check_fits(tmp_path, now, PREPARED, "fp32", ranks)
    else:
        with pytest.raises(RecipeError, match="world_size: 2 in the checkpoint, 1 now"):
            check_fits(tmp_path, now, PREPARED, "fp32", ranks)


def test_what_was_converted_is_told() -> None:
    saved = {"engine": "ddp", "zero_stage": 1, "world_size": 2, "dtype": "fp32", "format": FORMAT}
    now = {"engine": "ddp", "zero_stage": 3, "world_size": 2, "dtype": "bf16"}
    assert conversions(saved, now) == [
        "ZeRO stage 1 -> 3", "precision fp32 -> bf16",
    ]  # fmt: skip


def draw() -> list[Any]:
    return [
        torch.rand(3).tolist(), torch.randn(3).tolist(),
        np.random.rand(3).tolist(), np.random.randn(3).tolist(),
        [random.random(), random.gauss(0, 1), random.getrandbits(64)],
    ]  # fmt: skip


@pytest.mark.parametrize("drawn", [0, 1, 2])
def test_random_numbers_go_on_where_they_were_saved(tmp_path: Path, drawn: int) -> None:
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    for _ in range(drawn):  # an odd number of normal numbers leaves one in store
        torch.randn(1), np.random.randn(), random.gauss(0, 1)
    save_rng(tmp_path)
    wanted = draw()
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    assert draw() != wanted
    assert load_rng(tmp_path)
    assert draw() == wanted


def test_a_rank_that_did_not_exist_keeps_its_random_numbers(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    assert not load_rng(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_full_disk_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)})
    assert disk_trouble(caught.value) is not None


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.tensor([True, False])}
    save_tensors(tmp_path / "x.safetensors", tensors)
    back = load_tensors(tmp_path / "x.safetensors")
    assert set(back) == {"a", "b"} and all(torch.equal(back[k], tensors[k]) for k in back)
    assert load_tensors(tmp_path / "absent.safetensors") == {}


class Recurrent:
    def initial_state(self, rows: int, device: torch.device) -> torch.Tensor:
        return torch.zeros(rows, 1, 2, 3, device=device)


class Stateless:
    def initial_state(self, rows: int, device: torch.device) -> None:
        return None


def test_lane_states_are_kept_row_by_row_and_come_back() -> None:
    lanes = LaneStates(cast(Any, Recurrent()), 4, torch.device("cpu"))
    new = torch.randn(2, 1, 2, 3, requires_grad=True)
    lanes.put(slice(2, 4), new)
    got = lanes.get(slice(0, 4))
    assert got is not None and not got.requires_grad
    assert torch.equal(got[2:], new) and (got[:2] == 0).all()
    other = LaneStates(cast(Any, Recurrent()), 4, torch.device("cpu"))
    other.load(lanes.gather())
    assert torch.equal(cast(Any, other.get(slice(0, 4))), got)
    other.zero()
    assert (cast(Any, other.get(slice(0, 4))) == 0).all() and (got[2:] != 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_only_poisoned_lanes_are_zeroed(bad: float) -> None:
    lanes = LaneStates(cast(Any, Recurrent()), 3, torch.device("cpu"))
    state = torch.randn(3, 1, 2, 3)
    state[1, 0, 1, 2] = bad
    lanes.put(slice(0, 3), state)
    lanes.drop_nonfinite()
    got = cast(torch.Tensor, lanes.get(slice(0, 3)))
    assert (got[1] == 0).all() and torch.equal(got[[0, 2]], state[[0, 2]])


def test_models_without_a_state_have_no_lanes() -> None:
    lanes = LaneStates(cast(Any, Stateless()), 3, torch.device("cpu"))
    lanes.put(slice(0, 3), None)
    lanes.drop_nonfinite()
    lanes.zero()
    lanes.load({})
    assert lanes.get(slice(0, 3)) is None and lanes.gather() == {}
