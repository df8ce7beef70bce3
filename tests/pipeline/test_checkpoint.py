"""Checkpoints are whole or not there; what is damaged is found and never loaded."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.errors import DataError, RecipeError
from data_prep.shards import Prepared
from pipeline.recipe import Recipe
from pipeline.train import checkpoint
from pipeline.train.checkpoint import (
    begin,
    commit,
    find_checkpoint,
    list_checkpoints,
    problem,
    resolve_resume,
    tag_of,
)
from pipeline.train.lanes import LaneStates
from pipeline.train.state import (
    check_fits,
    differences,
    identity,
    load_rng,
    load_tensors,
    save_rng,
    save_tensors,
    write_trainer,
)
from tests.pipeline.tiny import recipe_tree

FILES = ("weights.pt", "plugins/lanes.safetensors", "rng/rank0.safetensors")


def save(checkpoints: Path, step: int, keep_last: int = 9, text: str = "content") -> Path:
    tag = tag_of(step)
    folder = begin(checkpoints, tag)
    for name in FILES:
        (folder / name).write_text(f"{text} {step} {name}")
    commit(checkpoints, tag, keep_last)
    return checkpoints / tag


def names(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


def test_a_commit_lists_every_file_and_moves_latest(tmp_path: Path) -> None:
    folder = save(tmp_path, 7)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [f["path"] for f in manifest["files"]] == sorted(FILES)
    assert problem(folder) is None
    assert (tmp_path / "latest").read_text() == "global_step7"
    assert names(tmp_path) == ["global_step7", "latest"]


def test_the_manifest_comes_after_all_files_and_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    original = checkpoint.write_atomic

    def watch(path: Path, data: str) -> None:
        there = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.pt"))
        events.append(f"{path.relative_to(tmp_path)} with {there}")
        original(path, data)

    monkeypatch.setattr(checkpoint, "write_atomic", watch)
    save(tmp_path, 3)
    assert events == [
        "global_step3.tmp/manifest.json with ['global_step3.tmp/weights.pt']",
        "latest with ['global_step3/weights.pt']",
    ]


def test_an_unfinished_save_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (begin(tmp_path, "global_step2") / "weights.pt").write_text("half")
    assert [p.name for p in list_checkpoints(tmp_path)] == ["global_step1"]
    assert find_checkpoint(tmp_path).name == "global_step1"
    assert (tmp_path / "latest").read_text() == "global_step1"


def test_beginning_a_save_removes_what_killed_ones_left(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for left in ("global_step2.tmp", "global_step0.tmp", "global_step1.old.tmp"):
        (tmp_path / left / "plugins").mkdir(parents=True)
        (tmp_path / left / "weights.pt").write_text("half")
    folder = begin(tmp_path, "global_step2")
    assert names(tmp_path) == ["global_step1", "global_step2.tmp", "latest"]
    assert sorted(p.name for p in folder.iterdir()) == ["plugins", "rng"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_oldest_are_pruned(tmp_path: Path, keep: int) -> None:
    for step in (5, 9, 10, 100):  # 9 < 10 < 100 as numbers, not as text
        save(tmp_path, step, keep)
    left = [p.name for p in list_checkpoints(tmp_path)]
    assert left == [f"global_step{n}" for n in (100, 10, 9, 5)[:keep]]
    assert names(tmp_path) == sorted([*left, "latest"])


def test_saving_a_step_again_replaces_it_whole(tmp_path: Path) -> None:
    save(tmp_path, 4, text="old")
    folder = save(tmp_path, 4, text="new")
    assert problem(folder) is None and (folder / "weights.pt").read_text().startswith("new")
    assert names(tmp_path) == ["global_step4", "latest"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGE = {"truncated": truncate, "flipped": flip, "deleted": Path.unlink}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_found(tmp_path: Path, name: str, how: str) -> None:
    folder = save(tmp_path, 4)
    DAMAGE[how](folder / name)
    found = problem(folder)
    assert found is not None and name in found and str(folder) in found


def test_size_and_presence_are_checked_without_hashing(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    truncate(folder / FILES[0])
    assert "bytes" in (problem(folder, verify=False) or "")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_manifest_never_crashes_the_search(
    tmp_path: Path, data: st.DataObject, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another byte anywhere: the checkpoint is passed over, or what counts was not touched."""
    checkpoints = tmp_path / "checkpoints"
    if not checkpoints.exists():
        save(checkpoints, 1)
        save(checkpoints, 2)
        shutil.copy(checkpoints / "global_step2" / "manifest.json", tmp_path / "whole.json")
    raw = bytearray((tmp_path / "whole.json").read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    (checkpoints / "global_step2" / "manifest.json").write_bytes(raw)
    assert find_checkpoint(checkpoints).name in ("global_step2", "global_step1")


@pytest.mark.parametrize("content", ["{}", "[]", '{"files": 3}', '{"files": [{}]}', "", "{"])
def test_a_manifest_that_lists_nothing_is_damage(tmp_path: Path, content: str) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").write_text(content)
    assert find_checkpoint(tmp_path).name == "global_step1"


def test_a_damaged_newest_is_passed_over_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    flip(tmp_path / "global_step3" / FILES[0])
    (tmp_path / "global_step2" / "manifest.json").unlink()
    assert find_checkpoint(tmp_path) == tmp_path / "global_step1"
    warnings = capsys.readouterr().err.splitlines()
    assert [line.startswith("warning: passed over a damaged") for line in warnings] == [True] * 2
    assert "global_step3: weights.pt: sha256 differs" in warnings[0]
    assert "global_step2 has no manifest.json" in warnings[1]


def test_when_all_are_damaged_the_data_refuses(tmp_path: Path) -> None:
    for step in (1, 2):
        truncate(save(tmp_path, step) / FILES[1])
    with pytest.raises(DataError, match="no checkpoint can be used: .*step2.*step1"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("make", [True, False])
def test_where_there_is_none_the_recipe_refuses(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "checkpoints"
    if make:
        begin(folder, "global_step2")
    with pytest.raises(RecipeError, match="holds no checkpoint"):
        find_checkpoint(folder)


def test_a_named_checkpoint_is_taken_or_refused_but_never_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1)
    damaged = save(tmp_path, 2)
    truncate(damaged / FILES[0])
    assert find_checkpoint(tmp_path, "global_step1").name == "global_step1"
    with pytest.raises(DataError, match="checkpoint global_step2: "):
        find_checkpoint(tmp_path, "global_step2")
    with pytest.raises(DataError, match="does not exist"):
        find_checkpoint(tmp_path, "global_step3")
    with pytest.raises(RecipeError, match="expected global_stepN"):
        find_checkpoint(tmp_path, "../secrets")


def test_resume_means_what_it_says(tmp_path: Path) -> None:
    assert resolve_resume("auto", tmp_path) is None
    assert resolve_resume("never", tmp_path) is None
    with pytest.raises(RecipeError, match="holds no checkpoint"):
        resolve_resume("must", tmp_path)
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    assert resolve_resume("auto", tmp_path) == resolve_resume("must", tmp_path) == second
    with pytest.raises(RecipeError, match="run.resume=never, but"):
        resolve_resume("never", tmp_path)
    assert resolve_resume(str(first), tmp_path / "elsewhere") == first


def test_resume_from_a_damaged_path_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="the save never finished"):
        resolve_resume(str(folder), tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        resolve_resume(str(tmp_path / "global_step9"), tmp_path)
    with pytest.raises(DataError, match="no checkpoint can be used"):
        resolve_resume("auto", tmp_path)  # never silently afresh over a damaged run


# What is saved beside the weights --------------------------------------------------------------


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
    ],
)
def test_a_run_is_the_same_run_or_every_difference_is_named(
    changes: dict[str, Any], lines: list[str]
) -> None:
    saved = identity(recipe(), PREPARED, "fp32")
    assert differences(saved, identity(recipe(**changes), PREPARED, "fp32")) == lines


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
    ("saved", "now", "fits"),
    [
        ((0, 1), (0, 1), True),
        ((0, 2), (0, 1), True),  # nothing is sharded: any number of devices will do
        ((1, 2), (1, 2), True),
        ((1, 2), (1, 1), False),
        ((0, 1), (1, 1), False),
        ((1, 1), (0, 1), False),
    ],
)
def test_the_layout_must_match_where_anything_is_sharded(
    tmp_path: Path, saved: tuple[int, int], now: tuple[int, int], fits: bool
) -> None:
    layout = dict(zip(("zero_stage", "world_size"), saved, strict=True))
    was = recipe(engine__zero_stage=saved[0])
    write_trainer(tmp_path, {"identity": identity(was, PREPARED, "fp32"), "layout": layout})
    new = recipe(engine__zero_stage=now[0])
    if fits:
        check_fits(tmp_path, new, PREPARED, "fp32", now[1])
    else:
        with pytest.raises(RecipeError, match="in the checkpoint, . now"):
            check_fits(tmp_path, new, PREPARED, "fp32", now[1])


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


def test_a_kill_between_the_two_renames_of_a_second_save_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 4, text="first")
    original = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "global_step4.tmp":
            raise OSError("killed here")
        return original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(OSError, match="killed here"):
            save(tmp_path, 4, keep_last=1, text="second")
    found = find_checkpoint(tmp_path)
    assert found.name == "global_step4.previous" and "first" in (found / FILES[0]).read_text()
    save(tmp_path, 4, keep_last=1, text="third")
    assert names(tmp_path) == ["global_step4", "latest"]
    assert "third" in (find_checkpoint(tmp_path) / FILES[0]).read_text()
