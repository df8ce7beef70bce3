"""The learning rate over applied steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from pipeline.optim import schedule
from pipeline.optim.build import build_optimizer
from pipeline.recipe.batch import BatchConfig
from pipeline.recipe.optim import OptimConfig

BATCH = BatchConfig(global_batch=100, micro_batch=50, window_tokens=10)  # 1,000 tokens


def of_tokens(tokens: int) -> BatchConfig:
    return BatchConfig(global_batch=tokens // 10, micro_batch=1, window_tokens=10)


def section(**changes: Any) -> OptimConfig:
    return OptimConfig(**({"lr": 0.8, "warmup_steps": 10} | changes))


def learning_rate(made: OptimConfig, applied: int, run_steps: int) -> float:
    return schedule.learning_rate(made, BATCH, applied, run_steps)


def test_warm_up_climbs_in_equal_steps_to_the_peak() -> None:
    rates = [learning_rate(section(), applied, 100) for applied in range(11)]
    assert rates[:10] == pytest.approx([0.08 * n for n in range(1, 11)])
    assert rates[10] == pytest.approx(0.8)  # the decay begins at the peak


def test_without_warm_up_the_first_update_has_the_peak() -> None:
    assert learning_rate(section(warmup_steps=0), 0, 100) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("decay", "quarter", "half"),
    [("linear", 0.75, 0.5), ("cosine", 0.5 * (1 + math.cos(math.pi / 4)), 0.5), ("none", 1, 1)],
)
def test_decay_has_its_shape(decay: str, quarter: float, half: float) -> None:
    # 10 steps of warm-up, then 80 of decay
    rates = {n: learning_rate(section(decay=decay), n, 90) / 0.8 for n in (10, 30, 50, 90)}
    end = 1 if decay == "none" else 0
    assert rates == pytest.approx({10: 1, 30: quarter, 50: half, 90: end}, abs=1e-12)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_final_share_is_reached_and_kept(decay: str) -> None:
    made = section(decay=decay, final_lr_share=0.1, decay_steps=50)
    assert learning_rate(made, 30, 100) == pytest.approx(0.8 * (0.1 + 0.9 * 0.5))
    assert [learning_rate(made, n, 100) for n in (50, 51, 99)] == pytest.approx([0.08] * 3)


def test_a_horizon_longer_than_the_run_leaves_the_rate_high() -> None:
    made = section(decay_steps=190)
    assert learning_rate(made, 100, 100) == pytest.approx(0.4)
    # The length of the run plays no part then.
    assert all(learning_rate(made, n, 100) == learning_rate(made, n, 7) for n in range(200))


@given(
    applied=st.integers(0, 300), run=st.integers(1, 200), warmup=st.integers(0, 60),
    horizon=st.none() | st.integers(1, 250), share=st.floats(0, 1),
    decay=st.sampled_from(["linear", "cosine", "none", "wsd", "step"]),
)  # fmt: skip
def test_the_rate_stays_between_its_bounds_and_never_rises_after_the_warm_up(
    applied: int, run: int, warmup: int, horizon: int | None, share: float, decay: str
) -> None:
    made = section(warmup_steps=warmup, decay_steps=horizon, final_lr_share=share, decay=decay)
    now, later = (learning_rate(made, n, run) for n in (applied, applied + 1))
    low = 0 if applied < warmup else share * 0.8
    assert low - 1e-12 <= now <= 0.8 + 1e-12
    assert later <= now + 1e-12 or applied < warmup
    assert learning_rate(made, applied, run) == now  # no state


def test_a_stable_rate_decays_at_the_end_of_its_horizon() -> None:
    made = section(decay="wsd", decay_share=0.25, warmup_steps=0, final_lr_share=0.5)
    found = [learning_rate(made, n, 80) for n in (0, 59, 60, 70, 80, 90)]
    assert found == pytest.approx([0.8, 0.8, 0.8, 0.6, 0.4, 0.4])


def test_a_rate_in_steps_falls_by_its_factor_and_not_below_the_last_share() -> None:
    made = section(decay="step", decay_at=[0.25, 0.5], warmup_steps=0, final_lr_share=0.05)
    found = [learning_rate(made, n, 80) for n in (0, 19, 20, 39, 40, 80)]
    assert found == pytest.approx([0.8, 0.8, 0.08, 0.08, 0.04, 0.04])


def test_the_points_of_a_decay_are_shares_of_the_whole_run() -> None:
    """Goyal et al. 2017 fall after 30, 60 and 80 of 90 epochs, of which 5 are warm-up."""
    stepped = section(decay="step", warmup_steps=500)
    rates = [learning_rate(stepped, n, 9000) / 0.8 for n in (2999, 3000, 5999, 6000, 7999, 8000)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001])
    stable = section(decay="wsd", warmup_steps=3000)
    assert [learning_rate(stable, n, 9000) / 0.8 for n in (7200, 8100)] == pytest.approx([1, 0.5])


def scaled(**changes: Any) -> OptimConfig:
    """A batch of four times the reference."""
    return section(**{"reference_tokens": 250, "scaling": "linear"} | changes)


@pytest.mark.parametrize(
    ("changes", "peak"),
    [({}, 3.2), ({"scaling": "sqrt"}, 1.6), ({"scaling": "legw"}, 1.6), ({"scaling": "none"}, 0.8),
     ({"lr_cap": 3.0}, 3.0), ({"lr_cap": 5.0}, 3.2), ({"reference_tokens": 4000}, 0.2)],
)  # fmt: skip
def test_the_peak_follows_rule_and_cap(changes: dict[str, Any], peak: float) -> None:
    assert scaled(**changes).peak_lr(BATCH.tokens) == pytest.approx(peak)
    assert learning_rate(scaled(**changes), 10, 100) == pytest.approx(peak)


@pytest.mark.parametrize(
    ("warmup", "first", "half", "last", "after"),
    [
        ("zero", 0.32, 1.92, 3.2, 3.2),
        ("gradual", 0.8, 2.0, 2.96, 3.2),
        ("constant", 0.8, 0.8, 0.8, 3.2),
    ],
)
def test_the_warm_up_begins_where_it_says(
    warmup: str, first: float, half: float, last: float, after: float
) -> None:
    rates = [learning_rate(scaled(warmup=warmup), n, 100) for n in (0, 5, 9, 10)]
    assert rates == pytest.approx([first, half, last, after])


def test_a_capped_warm_up_climbs_to_the_cap_only() -> None:
    made = scaled(warmup="gradual", lr_cap=1.2)
    assert learning_rate(made, 5, 100) == pytest.approx(1.0)


def test_lengths_in_tokens_become_steps_of_the_batch() -> None:
    made = section(warmup_steps=0, warmup_tokens=7_500, decay_tokens=40_000)
    assert made.warmup_length(BATCH) == 8 and made.warmup_length(of_tokens(2000)) == 4
    assert learning_rate(made, 7, 1000) == pytest.approx(0.8)
    assert learning_rate(made, 24, 1000) == pytest.approx(0.4)
    assert learning_rate(made, 40, 1000) == 0


def test_legw_warms_up_for_as_many_steps_whatever_the_batch() -> None:
    made = scaled(scaling="legw", warmup_steps=0, warmup_tokens=2_500)
    assert [made.warmup_length(of_tokens(n)) for n in (250, 1000, 16000)] == [10, 10, 10]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"scaling": "sqrt", "reference_tokens": None}, "needs reference_tokens"),
        ({"lr_cap": 0.5}, "lr_cap=0.5 is below the reference rate lr=0.8"),
        ({"warmup": "gradual", "scaling": "none"}, "begins at the reference rate"),
        ({"warmup_tokens": 500}, "both given: keep one"),
        ({"decay_steps": 5, "decay_tokens": 500}, "both given: keep one"),
        ({"decay_at": [0.5, 0.2]}, "expected rising shares"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        scaled(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"lr": -1.0}, {"final_lr_share": 1.1}, {"warmup_steps": -1},
              {"decay": "square"}, {"decay_steps": 0}],
)  # fmt: skip
def test_impossible_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        section(**wrong)


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(section(weight_decay=0.25, betas=(0.8, 0.95)), module)
    decayed = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decayed == {id(p): 0.25 if p.dim() > 1 else 0.0 for p in module.parameters()}
    assert all(g["betas"] == (0.8, 0.95) for g in optimizer.param_groups)


def test_the_optimizer_is_adamw() -> None:
    torch.manual_seed(0)
    start = torch.randn(3, 4, dtype=torch.float64)
    layer = nn.Linear(4, 3, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(start)
    made = section(lr=0.1, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.5)
    optimizer = build_optimizer(made, layer)
    w, m, v = start.clone(), torch.zeros(3, 4).double(), torch.zeros(3, 4).double()
    for step in range(1, 6):
        gradient = torch.randn(3, 4, dtype=torch.float64)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        m, v = 0.7 * m + 0.3 * gradient, 0.9 * v + 0.1 * gradient**2
        update = (m / (1 - 0.7**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-3)
        w = w - 0.1 * 0.5 * w - 0.1 * update
    torch.testing.assert_close(layer.weight.detach(), w)
