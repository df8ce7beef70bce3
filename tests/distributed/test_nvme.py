"""The optimizer on an NVMe disk: its steps are the plain ones, and what lies there is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder
from torch import nn

from data_prep.errors import RecipeError
from pipeline.recipe import Recipe
from pipeline.recipe.deepspeed import derive_deepspeed, template_path
from pipeline.train.engine import check_config, check_machine
from tests.distributed.test_engine import ds_config
from tests.pipeline.tiny import recipe_tree
from tests.ranks import run_ranks

NVME = {"device": "nvme", "nvme_path": "disk"}
WIDTH = 1030  # its biases are no whole number of blocks, nor are a rank's shares of them
needs_libaio = pytest.mark.skipif(
    not AsyncIOBuilder().is_compatible(verbose=False), reason="libaio-dev is not installed"
)


def build_module() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(5, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(),
        nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3),
    )  # fmt: skip


def backward(model: Any, step: int, rows: slice, share: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    inputs, targets = torch.randn(8, 5, generator=generator), torch.randn(8, 3, generator=generator)
    return ((model(inputs[rows]) - targets[rows]) ** 2).sum() * share


def make_engine(folder: Path, stage: int, nvme: bool) -> Any:
    from pipeline.train.engine import DeepSpeedEngine, init_distributed

    init_distributed(2)
    config = ds_config(stage, "fp32", 1.0) | {"gradient_accumulation_steps": 1,
                                              "train_micro_batch_size_per_gpu": 4}  # fmt: skip
    if nvme:
        disk = {"device": "nvme", "nvme_path": str(folder), "buffer_count": 6}
        # Two groups of parameters on the disk, and the last layer in memory.
        config["zero_optimization"] |= {"offload_optimizer": disk, "sub_group_size": WIDTH**2 // 2}
        config["zero_force_ds_cpu_optimizer"] = False
    module = build_module()
    return DeepSpeedEngine(module, torch.optim.AdamW(module.parameters(), lr=0.01), config)


def train(engine: Any, steps: range) -> list[torch.Tensor]:
    rows = slice(engine.rank * 4, engine.rank * 4 + 4)
    for step in steps:
        engine.backward(backward(engine.forward, step, rows, 1 / 24), last=True)
        assert engine.step().value == "applied"
    return [engine.get_parameter(p) for p in engine.module.parameters()]


def rank_train(rank: int, folder: Path) -> tuple[int, list[torch.Tensor]]:
    from pipeline.train import nvme

    engine = make_engine(folder, 3, nvme=True)
    return len(nvme.groups(engine._ds.optimizer)), train(engine, range(4))


def rank_save(rank: int, folder: Path) -> list[torch.Tensor]:
    """Two steps, a checkpoint, and two steps more."""
    from pipeline.train import piece_files

    engine = make_engine(folder, 3, nvme=True)
    train(engine, range(2))
    (folder / "state").mkdir(exist_ok=True)
    piece_files.write(engine.snapshot(copy=False), folder, rank)
    return train(engine, range(2, 4))


def rank_resume(rank: int, folder: Path, stage: int, nvme: bool) -> list[torch.Tensor]:
    from pipeline.train import piece_files

    engine = make_engine(folder, stage, nvme)
    engine.restore(piece_files.SavedPieces.open(folder))
    return train(engine, range(2, 4))


@needs_libaio
@pytest.mark.long  # the first time compiles DeepSpeed's extension, which takes minutes
def test_its_steps_are_the_plain_ones(tmp_path: Path) -> None:
    wanted = build_module()
    optimizer = torch.optim.AdamW(wanted.parameters(), lr=0.01)
    for step in range(4):
        optimizer.zero_grad()
        backward(wanted, step, slice(8), 1 / 24).backward()
        torch.nn.utils.clip_grad_norm_(wanted.parameters(), 1.0)
        optimizer.step()
    for groups, parameters in run_ranks(2, rank_train, tmp_path, limit_s=900):
        assert groups == 2
        for mine, theirs in zip(parameters, wanted.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs.detach(), rtol=0, atol=2e-4)


@needs_libaio
@pytest.mark.long
@pytest.mark.parametrize(("stage", "nvme"), [(3, True), (3, False), (0, False)])
def test_a_run_goes_on_from_what_lay_there(tmp_path: Path, stage: int, nvme: bool) -> None:
    wanted = run_ranks(2, rank_save, tmp_path, limit_s=900)
    found = run_ranks(2, rank_resume, tmp_path, stage, nvme)
    for mine, theirs in zip(found[0], wanted[0], strict=True):
        if nvme:
            assert torch.equal(mine, theirs)
        else:
            torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)


def refused(folder: Path, stage: int, **zero: Any) -> str:
    path = folder / "template.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": "auto", **zero}}))
    tree = recipe_tree(folder, "mlstm", engine__template=str(path), engine__zero_stage=stage)
    recipe = Recipe.model_validate(tree, strict=False)
    with pytest.raises(RecipeError) as error:
        config = derive_deepspeed(recipe, 2, "fp32")
        check_config(config, template_path(recipe))
        check_machine(config)
    return str(error.value)


def test_what_cannot_lie_on_a_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "never whole in memory" in refused(tmp_path, 3, offload_param=NVME)
    assert "found engine.zero_stage=2" in refused(tmp_path, 2, offload_optimizer=NVME)
    no_path = refused(tmp_path, 3, offload_optimizer={"device": "nvme"})
    assert "offload_optimizer.nvme_path is missing" in no_path
    assert "nvme_path=disk is no folder" in refused(tmp_path, 3, offload_optimizer=NVME)
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: False)
    there = NVME | {"nvme_path": str(tmp_path)}
    assert "apt install libaio-dev" in refused(tmp_path, 3, offload_optimizer=there)
