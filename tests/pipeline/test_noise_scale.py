"""The gradient noise scale against a gradient whose noise is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from data_prep.errors import RecipeError
from pipeline.clock import Clock, StepResult
from pipeline.optim.build import noise_plugins
from pipeline.optim.noise_scale import NoiseScale, estimate
from pipeline.recipe import load_recipe
from pipeline.recipe.batch import BatchConfig
from tests.pipeline.tiny import write_recipe

TRUE, SIGMA, WIDTH = 0.5, 2.0, 40
MICRO, MICROS = 8, 6
BATCH = BatchConfig(global_batch=MICRO * MICROS, micro_batch=MICRO, window_tokens=1)


def looked_at(rounds: int, scale: float = 1.0, every: int = 1) -> NoiseScale:
    """Gradients of mean 0.5 in every coordinate, a deviation of 2 for a token, SGD's usual course
    of micro-batches: each a share of the mean over all tokens, accumulated."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(WIDTH))
    plugin = NoiseScale(BATCH, every, decay=0.999)
    plugin.setup(nn.ParameterList([weight]))
    clock = Clock()
    for _ in range(rounds):
        engine: Any = SimpleNamespace(loss_scale=scale, world_size=1, grad_norm=None)
        plugin.before_iteration(engine, clock)
        for _ in range(MICROS):
            tokens = TRUE + SIGMA * torch.randn(MICRO, WIDTH)
            (scale * (tokens @ weight).sum() / (MICRO * MICROS)).backward()
        assert weight.grad is not None
        engine.grad_norm = float(weight.grad.norm()) / scale
        weight.grad = None
        plugin.after_step(engine, clock, StepResult.APPLIED)
        clock.advance(StepResult.APPLIED, 1)
    return plugin


def test_two_norms_give_back_what_made_them() -> None:
    found = estimate(small_squared=3.0 + 50 / 4, small=4, big_squared=3.0 + 50 / 64, big=64)
    assert found == pytest.approx((3.0, 50.0))


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_scale_of_a_known_noise_is_found(scale: float) -> None:
    found = looked_at(1500, scale).metrics(Clock())
    assert found["noise/trace"] == pytest.approx(WIDTH * SIGMA**2, rel=0.05)
    assert found["noise/gradient_squared"] == pytest.approx(WIDTH * TRUE**2, rel=0.05)
    assert found["noise/scale_tokens"] == pytest.approx((SIGMA / TRUE) ** 2, rel=0.1)


def test_it_survives_a_checkpoint_and_looks_only_when_it_is_due() -> None:
    plugin = looked_at(40)
    again = NoiseScale(BATCH, 1, decay=0.999)
    again.load_plugin_state({k: v.clone() for k, v in plugin.plugin_state().items()})
    assert again.metrics(Clock()) == plugin.metrics(Clock())
    assert looked_at(40, every=1000).plugin_state()["sums"][2] == pytest.approx(0.001)


def test_steps_that_were_not_applied_leave_no_trace() -> None:
    plugin = NoiseScale(BATCH, 1)
    weight = nn.Parameter(torch.ones(3))
    plugin.setup(nn.ParameterList([weight]))
    engine: Any = SimpleNamespace(loss_scale=1.0, world_size=1, grad_norm=float("nan"))
    plugin.before_iteration(engine, Clock())
    (weight * float("inf")).sum().backward()
    plugin.after_step(engine, Clock(), StepResult.OVERFLOW)
    assert not plugin.plugin_state()["sums"].any() and plugin.metrics(Clock()) == {}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["batch.micro_batch=8"], "one micro-batch of 128 tokens on one device: lower"),
        (["head={kind: gram, loss: taylor}"], "head.kind=gram: that head has no gradient"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Any, overrides: list[str], words: str
) -> None:
    path = write_recipe(tmp_path, "transformer", optim__noise_every_steps=1)
    with pytest.raises(RecipeError, match=words):
        noise_plugins(load_recipe(path, overrides))
