"""Sharpness-aware steps: against the method written out, on two ranks, with lane states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.clock import Clock
from tests.distributed.test_ddp import DDP, trained
from tests.distributed.training import plant, train_recipe
from tests.pipeline.tiny import losses, write_recipe
from tests.ranks import run_ranks

RHO, LR = 0.3, 0.1


def build() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator)


def rank_steps(rank: int, dtype: str, adaptive: bool) -> list[Tensor]:
    from pipeline.optim.sam import SharpnessAware
    from pipeline.recipe.engine import EngineConfig
    from pipeline.train.ddp_engine import DDPEngine
    from pipeline.train.engine import init_distributed

    init_distributed(2)
    module = build()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    engine = DDPEngine(module, optimizer, EngineConfig(kind="ddp"), dtype, 0.0)
    sam, rows = SharpnessAware(RHO, adaptive), slice(4 * rank, 4 * rank + 4)

    def backward(step: int) -> None:
        x, y = batch(step)
        found = engine.forward(x[rows].to(next(module.parameters()).dtype)).float()
        engine.backward((found - y[rows]).square().sum() / 24, last=True)

    for step in range(3):
        backward(step)
        assert sam.second_pass(engine, Clock())
        engine.discard()
        backward(step)
        sam.after_backward(engine, Clock())
        engine.step()
    return [engine.get_parameter(parameter) for parameter in module.parameters()]


def written_out(adaptive: bool) -> list[Tensor]:
    module = build()
    parameters = list(module.parameters())

    def gradients(step: int) -> tuple[Tensor, ...]:
        x, y = batch(step)
        return torch.autograd.grad((module(x) - y).square().sum() / 24, parameters)

    for step in range(3):
        found = gradients(step)
        scales = [p.detach().abs() if adaptive else torch.ones_like(p) for p in parameters]
        norm = torch.cat([(s * g).flatten() for s, g in zip(scales, found, strict=True)]).norm()
        climb = [RHO * s * s * g / norm for s, g in zip(scales, found, strict=True)]
        with torch.no_grad():
            for parameter, up in zip(parameters, climb, strict=True):
                parameter += up
        found = gradients(step)
        with torch.no_grad():
            for parameter, up, gradient in zip(parameters, climb, found, strict=True):
                parameter -= up + LR * gradient
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize(
    ("dtype", "adaptive", "tolerance"),
    [("fp32", False, 1e-6), ("fp32", True, 1e-6), ("bf16", False, 1e-2)],
)
def test_it_is_the_method_written_out(dtype: str, adaptive: bool, tolerance: float) -> None:
    wanted = written_out(adaptive)
    for found in run_ranks(2, rank_steps, dtype, adaptive):
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_lane_states_are_those_of_the_first_pass_and_ranks_do_not_matter(tmp_path: Path) -> None:
    sam = [*DDP, "optim.sam_rho=0.5"]
    runs = {"plain": DDP, "still": [*DDP, "optim.sam_rho=1e-6"], "straight": sam}
    plain, still, straight, resumed = trained(tmp_path, "mlstm", runs, sam)
    assert still == pytest.approx(plain, abs=1e-4)
    assert resumed == straight
    assert straight[1:] != pytest.approx(plain[1:], abs=1e-3)
    recipe = str(write_recipe(tmp_path, "mlstm"))
    run_ranks(1, train_recipe, recipe, ["run.name=one", *sam])
    assert straight == pytest.approx(losses(tmp_path / "runs/one"), abs=5e-5)


def rank_skipped(rank: int, recipe: str) -> tuple[list[bool], list[str]]:
    """Of every step whether it moved the weights, and what became of it."""
    from pipeline.recipe import load_recipe
    from pipeline.train.engine import init_distributed
    from pipeline.train.loop import train_step
    from pipeline.train.start import start_run

    init_distributed(2)
    run = start_run(load_recipe(recipe, []))
    plant(run, 72, 30.0)
    moved, results = [], []
    for _ in range(12):
        before = [p.detach().clone() for p in run.module.parameters()]
        results.append(train_step(run).value)
        pairs = zip(before, run.module.parameters(), strict=True)
        moved.append(not all(torch.equal(old, new) for old, new in pairs))
    run.close()
    return moved, results


def test_a_batch_that_is_skipped_leaves_the_weights_where_they_were(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, "transformer", run__steps=16, engine__kind="ddp", optim__sam_rho=0.5,
        watch__spike="skip", watch__spike_window_steps=6,
    )  # fmt: skip
    moved, results = run_ranks(1, rank_skipped, str(recipe))[0]
    assert results[9] == "skipped" and results.count("applied") == 11
    assert [step for step, m in enumerate(moved) if not m] == [9]


def rank_poisoned(rank: int) -> Any:
    """A gradient that is no number: no second pass, and weights stay."""
    from pipeline.optim.sam import SharpnessAware
    from pipeline.recipe.engine import EngineConfig
    from pipeline.train.ddp_engine import DDPEngine
    from pipeline.train.engine import init_distributed

    init_distributed(2)
    module = build()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    engine = DDPEngine(module, optimizer, EngineConfig(kind="ddp"), "fp32", 0.0)
    x, _ = batch(0)
    engine.backward(engine.forward(x * float("nan" if rank else 1)).sum(), last=True)
    again = SharpnessAware(RHO, False).second_pass(engine, Clock())
    return again, engine.step().value, [engine.get_parameter(p) for p in module.parameters()]


def test_a_nan_is_no_direction() -> None:
    for again, result, weights in run_ranks(2, rank_poisoned):
        assert (again, result) == (False, "overflow")
        assert all(torch.equal(a, b) for a, b in zip(weights, build().parameters(), strict=True))
