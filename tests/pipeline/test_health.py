"""The detectors by themselves, on curves whose answer is known."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest

from data_prep.errors import RecipeError
from pipeline.clock import StepResult
from pipeline.recipe import Recipe, load_recipe
from pipeline.train.health import Health
from pipeline.train.pace import Pace, Paces, stragglers
from pipeline.train.watchdog import Heart, blame

SIGMA = 6.0


def alarms(health: Health, curve: list[float], resume_at: int | None = None) -> list[int]:
    """Steps of `curve` that are called spikes; all are applied."""
    found = []
    for step, loss in enumerate(curve):
        if step == resume_at:
            fresh = Health(health.losses.maxlen or 0)
            fresh.load_state(json.loads(json.dumps(health.state())), instances=step)
            health = fresh
        if health.deviations(loss) > SIGMA:
            found.append(step)
        health.count(StepResult.APPLIED, loss)
    return found


def falling_curve(steps: int, seed: int) -> list[float]:
    noise = np.random.default_rng(seed).normal(scale=0.05, size=steps)
    return list(2 + 8 * np.exp(-np.arange(steps) / 150) + noise)


@pytest.mark.parametrize("resume_at", [None, 300, 511])
def test_a_spike_is_found_in_its_step_also_after_a_resume(resume_at: int | None) -> None:
    curve = falling_curve(600, seed=1)
    curve[512] += 1.0
    assert alarms(Health(128), curve, resume_at) == [512]


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_alarm(seed: int) -> None:
    assert alarms(Health(128), falling_curve(3000, seed)) == []


def test_a_loss_that_stands_still_is_no_alarm() -> None:
    curve = [2.0] * 200
    curve[150] = 2.0001  # rounding
    assert alarms(Health(128), curve) == []
    curve[160] = 2.5
    assert alarms(Health(128), curve) == [160]


def test_losses_of_another_phase_are_no_measure() -> None:
    """A head of another loss follows, or most weights are gone: what jumps by plan is no spike."""
    health = Health(16)
    for step in range(40):
        health.enter([0, int(step >= 20)])
        loss = (2.0 if step < 20 else 9.0) + 0.01 * (step % 3)
        if step == 30:
            fresh = Health(16)
            fresh.load_state(json.loads(json.dumps(health.state())), instances=step)
            health = fresh
            health.enter([0, 1])
            assert len(health.losses) == 10
        assert health.deviations(loss) <= SIGMA
        health.count(StepResult.APPLIED, loss)
    assert health.deviations(20.0) > SIGMA


def test_a_window_that_is_not_full_gives_no_verdict() -> None:
    assert alarms(Health(128), [2.0] * 127 + [9.0]) == []
    assert alarms(Health(128), [2.0] * 128 + [9.0]) == [128]


def test_deviations_are_those_of_the_textbook() -> None:
    health, curve = Health(32), falling_curve(50, seed=3)
    for loss in curve:
        health.count(StepResult.APPLIED, loss)
    window = curve[-32:]
    expected = (7.0 - statistics.fmean(window)) / statistics.pstdev(window)
    assert health.deviations(7.0) == pytest.approx(expected, rel=1e-12)


def test_only_applied_losses_enter_the_window_and_useless_steps_are_counted() -> None:
    health = Health(4)
    for result in (StepResult.APPLIED, StepResult.OVERFLOW, StepResult.SKIPPED):
        health.count(result, 1.0)
    assert list(health.losses) == [1.0] and health.useless_in_a_row == 2
    health.count(StepResult.TOPOLOGY, 1.0)
    assert list(health.losses) == [1.0] and health.useless_in_a_row == 0


# Paces ------------------------------------------------------------------------------------------


def paces(*own_s: float, step_s: float = 10.0, wait_s: float = 0.0) -> list[Paces]:
    return [Paces(r, f"host{r}", step_s, s, wait_s) for r, s in enumerate(own_s)]


@pytest.mark.parametrize(
    ("own_s", "found"),
    [
        ((1, 1, 5, 1), [2]),
        ((1, 5), [1]),  # of two ranks as well
        ((5, 5, 5, 5), []),  # all are slow
        ((1, 1, 1, 2.9), []),
        ((0.01, 0.01, 0.09, 0.01), []),  # nine times as long, and of no matter in ten seconds
        ((0, 0, 0, 0), []),
    ],
)
def test_a_rank_far_over_the_median_is_named(own_s: tuple[float, ...], found: list[int]) -> None:
    assert [p.rank for p, _ in stragglers(paces(*own_s))] == found


def test_one_slow_interval_may_be_chance_and_two_are_not() -> None:
    import torch

    pace = Pace(torch.device("cpu"), zero_stage=0)
    curve = [(1, 5), (1, 1), (5, 1), (1, 5), (1, 6), (1, 6)]
    said = [pace.warnings(paces(*own_s)) for own_s in curve]
    assert [bool(lines) for lines in said] == [False, False, False, False, True, True]
    assert "rank 1 (host1) computes 6.0 times as long" in said[4][0]


def test_waiting_for_data_is_told_once_in_a_hundred_lines() -> None:
    import torch

    pace = Pace(torch.device("cpu"), zero_stage=0)
    said = [i for i in range(250) if pace.warnings(paces(1, 1, wait_s=2.5))]
    assert said == [0, 100, 200]
    assert "25% of its step time" in Pace(torch.device("cpu"), 0).warnings(paces(1, wait_s=2.5))[0]
    assert Pace(torch.device("cpu"), 0).warnings(paces(1, 1, wait_s=1.9)) == []


# Whom a hang is blamed on -----------------------------------------------------------------------


def heart(rank: int, age_s: float | None = 1.0, beats: int = 9) -> Heart:
    return Heart(rank, age_s, f"host{rank}", 100 + rank, beats, "in micro-batch 2 of 4")


@pytest.mark.parametrize(
    ("hearts", "said", "unsaid"),
    [
        ([heart(0), heart(1, age_s=90)], ["rank 1 on host1 (process 101) is silent since 90 s"],
         ["behind", "network"]),
        ([heart(0), heart(1, beats=4), heart(2)], ["rank 1 on host1 (process 101) is behind, while "
         "in micro-batch 2 of 4"], ["silent", "rank 2", "network"]),
        ([heart(0), heart(1)], ["all ranks live and stand at the same place", "network"], ["rank"]),
        ([heart(0), heart(1, age_s=None)], ["nothing is known of rank 1"], ["network"]),
        ([heart(0)], ["look at the stacks"], ["network"]),
    ],
)  # fmt: skip
def test_the_ranks_that_others_wait_for_are_named(
    hearts: list[Heart], said: list[str], unsaid: list[str]
) -> None:
    sentence = blame(hearts, me=0, silent_after_s=20)
    assert all(words in sentence for words in said), sentence
    assert not any(words in sentence.replace("all ranks", "") for words in unsaid), sentence


def test_a_rollback_needs_checkpoints_to_go_back_to(tmp_path: object) -> None:
    recipe = "recipes/demo_transformer.yaml"
    needs = ["watch.spike=rollback", "checkpoint.every_steps=0"]
    with pytest.raises(RecipeError, match=r"set checkpoint\.every_steps"):
        load_recipe(recipe, needs)
    found: Recipe = load_recipe(recipe, ["watch.spike=rollback", "checkpoint.every_steps=5"])
    assert found.watch.rolls_back
