"""The promises of both engines, at every ZeRO stage, on two ranks, against plain PyTorch on one."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from tests.ranks import run_ranks

LR = 0.05
DDP = -1  # in the place of a ZeRO stage: the other engine


def build_module() -> nn.Module:
    torch.manual_seed(3)
    # 7 x 5 and 3: sizes that do not divide by two ranks.
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 5, generator=generator), torch.randn(8, 3, generator=generator)


def ds_config(stage: int, dtype: str, clip: float) -> dict[str, Any]:
    return {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": clip,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": dtype == "fp16", "initial_scale_power": 8, "hysteresis": 1},
        "bf16": {"enabled": dtype == "bf16"},
        "steps_per_print": 10**9,
    }


def make_engine(stage: int, dtype: str = "fp32", clip: float = 0.0, config: Any = None) -> Any:
    from deepspeed.accelerator import get_accelerator

    from pipeline.recipe.engine import EngineConfig
    from pipeline.train.ddp_engine import DDPEngine
    from pipeline.train.engine import DeepSpeedEngine, init_distributed

    if dtype == "fp16":  # the loss-scaling logic, on a CPU that cannot do fp16 by itself
        type(get_accelerator()).is_fp16_supported = lambda self: True  # type: ignore[method-assign]
    init_distributed(2)
    module = build_module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=LR, weight_decay=0.1)
    if stage == DDP:
        return DDPEngine(module, optimizer, EngineConfig(kind="ddp"), dtype, clip)
    return DeepSpeedEngine(module, optimizer, config or ds_config(stage, dtype, clip))


def accumulate(engine: Any, step: int) -> None:
    x, y = batch(step)
    dtype = next(engine.module.parameters()).dtype
    rows = range(engine.rank * 4, engine.rank * 4 + 4)
    for micro in (rows[:2], rows[2:]):
        last = micro[-1] == rows[-1]
        with nullcontext() if last else engine.no_sync():
            out = engine.forward(x[list(micro)].to(dtype))
            loss = ((out.float() - y[list(micro)]) ** 2).sum() / 24
            engine.backward(loss, last=last)


def reference(steps: int, clip: float = 0.0, gradient: torch.Tensor | None = None) -> nn.Module:
    module = build_module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=LR, weight_decay=0.1)
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        (((module(x) - y) ** 2).sum() / 24).backward()
        if gradient is not None:
            module[0].weight.grad = gradient.clone()  # type: ignore[union-attr]
        if clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return module


def full(engine: Any) -> list[torch.Tensor]:
    return [engine.get_parameter(p) for p in engine.module.parameters()]


def assert_same(got: list[torch.Tensor], want: nn.Module, tolerance: float = 2e-6) -> None:
    for mine, theirs in zip(got, want.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=tolerance, atol=tolerance)


def rank_steps(rank: int, stage: int, clip: float) -> Any:
    engine = make_engine(stage, clip=clip)
    for step in range(4):
        accumulate(engine, step)
        assert engine.step().value == "applied"
    return full(engine), engine.grad_norm


@pytest.mark.parametrize("clip", [pytest.param(0.0, marks=pytest.mark.long), 0.05])
@pytest.mark.parametrize("stage", [DDP, 0, 1, 2, 3])
def test_two_ranks_with_accumulation_equal_one_big_batch(stage: int, clip: float) -> None:
    for parameters, norm in run_ranks(2, rank_steps, stage, clip):
        assert_same(parameters, reference(4, clip))
        assert norm > 0


def rank_discard(rank: int, stage: int) -> Any:
    engine = make_engine(stage)
    for step in range(4):
        accumulate(engine, 50 + step)  # thrown away: must leave no trace
        engine.discard()
        accumulate(engine, step)
        engine.step()
    return full(engine)


@pytest.mark.parametrize("stage", [DDP, 0, 1, 2, 3])
def test_a_discarded_gradient_leaves_no_trace(stage: int) -> None:
    for parameters in run_ranks(2, rank_discard, stage):
        assert_same(parameters, reference(4))


def rank_full_access(rank: int, stage: int, dtype: str) -> Any:
    engine = make_engine(stage, dtype)
    first = dict(engine.named_parameters())["0.weight"]
    accumulate(engine, 0)
    seen = engine.get_gradient(first)
    wanted = torch.linspace(-1, 1, 35).reshape(7, 5)
    engine.set_gradient(first, wanted)
    read_back = engine.get_gradient(first)
    assert engine.step().value == "applied"
    norm = engine.grad_norm
    moment = engine.get_moment(first, "exp_avg")
    after = full(engine)
    engine.set_moment(first, "exp_avg", torch.ones(7, 5))
    moment_set = engine.get_moment(first, "exp_avg")
    new = torch.full((7, 5), 0.25)
    engine.set_parameter(first, new)
    x, _ = batch(9)
    layer_input = x[:2].to(next(engine.module.parameters()).dtype)
    got_out = engine.forward(layer_input).detach().float()
    return seen, read_back, moment, moment_set, after, engine.get_parameter(first), got_out, norm


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [
        (DDP, "fp32"),
        (DDP, "bf16"),
        *itertools.product(range(4), ("fp32",)),
        (1, "bf16"),
        (3, "bf16"),
        (0, "fp16"),
        (2, "fp16"),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in ((0, "bf16"), (2, "bf16"), (1, "fp16"), (3, "fp16"))
        ),
    ],
)
def test_full_gradients_parameters_and_moments(stage: int, dtype: str) -> None:
    tolerance = {"fp32": 2e-6, "bf16": 2e-2, "fp16": 2e-3}[dtype]
    wanted = torch.linspace(-1, 1, 35).reshape(7, 5)
    plain = build_module()
    x, y = batch(0)
    (((plain(x) - y) ** 2).sum() / 24).backward()
    for seen, read, moment, moment_set, after, parameter, out, norm in run_ranks(
        2, rank_full_access, stage, dtype
    ):
        expected = reference(1, gradient=wanted)
        torch.testing.assert_close(seen, plain[0].weight.grad, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(read, wanted, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(moment, 0.1 * wanted, rtol=tolerance, atol=tolerance)
        others = [p.grad.norm() for p in list(plain.parameters())[1:]]
        assert norm == pytest.approx(float(torch.stack([wanted.norm(), *others]).norm()), rel=1e-2)
        assert torch.equal(moment_set, torch.ones(7, 5))
        torch.testing.assert_close(
            after[0], expected[0].weight.detach(), rtol=tolerance, atol=tolerance
        )
        assert torch.equal(parameter, torch.full((7, 5), 0.25))
        with torch.no_grad():  # the very next forward must read the weight that was set
            expected[0].weight.fill_(0.25)
            want = expected(batch(9)[0][:2])
        torch.testing.assert_close(out, want, rtol=10 * tolerance, atol=10 * tolerance)


def rank_nan(rank: int, stage: int) -> Any:
    engine = make_engine(stage)
    results = []
    for step in range(3):
        accumulate(engine, step)
        results.append(engine.step().value)
        if step == 0:
            before = full(engine)
            x, _ = batch(7)
            out = engine.forward(x[:2] * (float("nan") if rank == 1 else 1.0))
            engine.backward(out.sum(), last=True)
            results.append(engine.step().value)
            assert all(torch.equal(a, b) for a, b in zip(before, full(engine), strict=True))
    return results


@pytest.mark.parametrize("stage", [DDP, 0, 1, 2, 3])
def test_a_nan_on_one_rank_is_an_overflow_on_all_and_changes_nothing(stage: int) -> None:
    for results in run_ranks(2, rank_nan, stage):
        assert results == ["applied", "overflow", "applied", "applied"]
