"""Preflight: what it finds before a run, on this machine and between ranks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from data_prep.errors import DataError, PipelineError, RecipeError
from pipeline.__main__ import parse
from pipeline.preflight import inputs, machine, micro_batch, network, preflight, quick, room
from pipeline.preflight.dry import valid_module
from pipeline.recipe import Recipe, load_recipe
from tests.pipeline.tiny import write_recipe
from tests.ranks import run_ranks


@pytest.fixture(scope="module", params=["mlstm", "transformer"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("run"), request.param)


@pytest.fixture
def recipe(path: Path) -> Recipe:
    return load_recipe(path)


def test_all_ticks(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    preflight(recipe)
    said = capsys.readouterr()
    assert said.out.count("✓") == 13 and "✗" not in said.err
    assert "✓ a micro-batch: loss 5." in said.out
    quick(recipe)
    assert capsys.readouterr().out == ""


def test_every_cross_is_named_and_all_are_found(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = [f"eval.last_word={{x: {{path: {tmp_path}/none.jsonl, text_field: text}}}}"]
    recipe = load_recipe(path, [*missing, f"data.folder={tmp_path / 'none'}"])
    with pytest.raises(RecipeError, match="found 2 problem"):
        preflight(recipe)
    said = capsys.readouterr()
    for name in ("prepared data", "evaluation files"):
        assert f"✗ {name}: " in said.err, said.err
    assert said.err.count("✗") == 2  # a micro-batch lacks the data that has been told of
    assert "✓ memory" in said.out
    with pytest.raises(RecipeError, match="the check before training found 1"):
        quick(recipe)


def test_only_data_missing_is_a_data_error(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        preflight(load_recipe(path, [f"data.folder={tmp_path / 'none'}"]))


def test_versions_outside_their_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"torch {torch.__version__}" in machine.versions()
    (tmp_path / "r.txt").write_text(
        "# a comment\ntorch>=2.11,<=2.13.0\nnumpy<1  # old\nno-such-thing>=1\n"
        'other>=9; platform_machine == "none"\n'
    )
    monkeypatch.setattr(machine, "_REQUIREMENTS", tmp_path / "r.txt")
    with pytest.raises(RecipeError, match=r"numpy .*, expected <1; no-such-thing is missing"):
        machine.versions()


def test_a_compiler_is_asked_for_only_where_it_is_needed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(path)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.compilers(recipe) == "none needed"
    offload = load_recipe(path, ["engine.template=ds_configs/zero2_offload.json"])
    with pytest.raises(RecipeError, match="no C.. compiler was found, but offloading"):
        machine.compilers(offload)


def test_what_the_engine_cannot_do_here(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: False)
    assert machine.engine(load_recipe(path), 1).endswith(", fp32")
    half = load_recipe(path, ["precision.dtype=fp16"])
    with pytest.raises(RecipeError, match="fp16 needs a GPU or a processor"):
        machine.engine(half, 1)
    with pytest.raises(RecipeError, match="found 1 problem"):
        preflight(half)


def test_stale_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "py311_cpu/op/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert machine.locks() == "none stale"
    os.utime(lock, (time.time() - 3600,) * 2)
    with pytest.raises(RecipeError, match="lock is 60 minutes old.*delete it"):
        machine.locks()


def test_too_little_disk_memory_and_time(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    module = valid_module(recipe, 1)
    with monkeypatch.context() as patch:
        patch.setattr(room.shutil, "disk_usage", lambda path: type("U", (), {"free": 1000}))
        with pytest.raises(RecipeError, match="two checkpoints need"):
            room.disk(recipe, module)
    with monkeypatch.context() as patch:
        patch.setattr(room, "free_memory", lambda: (1000.0, "RAM"))
        with pytest.raises(RecipeError, match="lower batch.micro_batch"):
            room.memory(recipe, module, 1)
        patch.setattr(micro_batch, "free_memory", lambda: (1000.0, "RAM"))
        assert "without memory" in micro_batch.one_micro_batch(recipe, module)
    monkeypatch.setattr(micro_batch, "_FLOPS_PER_S", {"cpu": 1.0, "cuda": 1.0})
    assert "would take some" in micro_batch.one_micro_batch(recipe, module)


def test_what_is_offloaded_must_fit_the_host(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["engine.zero_stage=2", "engine.template=ds_configs/zero2_offload.json"]
    plain, offload = load_recipe(path), load_recipe(path, keys)
    module = valid_module(plain, 1)
    monkeypatch.setattr(room, "run_dtype", lambda recipe: "bf16")
    monkeypatch.setattr(room, "free_memory", lambda: (1e9, "a GPU"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert "offloaded" not in room.memory(plain, module, 4)
    assert "offloaded by 4 device(s)" in room.memory(offload, module, 4)
    monkeypatch.setattr(room, "_free_ram", lambda: 1000.0)
    assert "offloaded" not in room.memory(plain, module, 4)
    with pytest.raises(RecipeError, match="share it among more hosts"):
        room.memory(offload, module, 4)


def test_a_folder_that_cannot_be_written(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be written"):
        room.writable(load_recipe(path, [f"run.folder={tmp_path / 'file'}"]))


def test_a_window_longer_than_the_text(path: Path) -> None:
    recipe = load_recipe(path)
    longer = recipe.batch.model_copy(update={"window_tokens": 10**6})
    with pytest.raises(DataError, match="less than one window"):
        inputs.data(recipe.model_copy(update={"batch": longer}))


# Ranks -------------------------------------------------------------------------------------------


def come(rank: int, started: int, absent: int | None) -> tuple[bool, str, float]:
    """What one of `started` ranks hears of a world that may expect more."""
    if absent is not None:
        os.environ["WORLD_SIZE"] = str(started + 1)
    if absent == 0:
        os.environ["RANK"] = str(rank + 1)
    began = time.monotonic()
    try:
        return True, network.meet(limit_s=4.0 if absent is not None else 60.0), 0.0
    except PipelineError as error:
        return False, str(error), time.monotonic() - began


def test_ranks_that_meet_give_a_table() -> None:
    results = run_ranks(2, come, 2, None)
    for met, text, _ in results:
        assert met and "2 ranks met" in text, text
        assert text.count(os.uname().nodename) == 2 and "cpu" in text
    assert results[0][1].splitlines()[1:] == results[1][1].splitlines()[1:]


def test_a_rank_that_does_not_come_is_named_to_all_who_came() -> None:
    for met, text, _ in run_ranks(2, come, 2, 2):
        assert not met and "rank 2 of 3 did not come" in text, text
        assert text.count(os.uname().nodename) == 2


@pytest.mark.long
def test_without_rank_0_every_rank_says_so() -> None:
    for rank, (met, text, _) in enumerate(run_ranks(2, come, 2, 0), 1):
        assert not met and text.startswith(f"rank {rank} on ") and "rank 0 does not answer" in text


def test_one_process_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RecipeError, match="under deepspeed, torchrun or srun"):
        network.meet()


def test_the_rank_that_deepspeed_puts_before_the_command_is_accepted() -> None:
    found = parse(["--local_rank=1", "preflight", "recipe.yaml", "run.steps=1", "--dist"])
    assert (found.command, found.dist, found.overrides) == ("preflight", True, ["run.steps=1"])


def test_overrides_may_stand_behind_options() -> None:
    found = parse(["plan", "recipe.yaml", "a=1", "--devices", "8", "b=2", "--price", "3", "c=4"])
    assert (found.devices, found.price, found.overrides) == (8, 3.0, ["a=1", "b=2", "c=4"])
    for wrong in (["plan", "recipe.yaml", "--devices", "8", "b"], ["advise", "runs/x", "a=1"],
                  ["run", "recipe.yaml", "--no-such=1"]):  # fmt: skip
        with pytest.raises(SystemExit) as left:
            parse(wrong)
        assert left.value.code == 2
