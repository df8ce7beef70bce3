"""A batch that grows: what it is after so many updates, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.errors import RecipeError
from pipeline.optim.schedule import learning_rate
from pipeline.recipe import load_recipe
from pipeline.recipe.batch import BatchConfig
from pipeline.recipe.optim import OptimConfig
from tests.pipeline.tiny import write_recipe


def batch(ramp: list[tuple[int, int]], **changes: Any) -> BatchConfig:
    return BatchConfig(
        **({"global_batch": 8, "micro_batch": 2, "window_tokens": 10, "ramp": ramp} | changes)
    )


def test_each_batch_lasts_until_its_tokens() -> None:
    made = batch([(50, 2), (170, 4)])  # 20 tokens a step until 50, so three; 40 until 170, so three
    assert [made.global_batch_at(n) for n in range(8)] == [2, 2, 2, 4, 4, 4, 8, 8]
    assert [made.tokens_after(n) for n in range(8)] == [0, 20, 40, 60, 100, 140, 180, 260]


def test_a_batch_whose_tokens_have_passed_is_left_out() -> None:
    assert [batch([(10, 6), (20, 2)]).global_batch_at(n) for n in range(3)] == [6, 8, 8]


ramps = st.lists(
    st.tuples(st.integers(1, 3000), st.integers(1, 9)), max_size=4, unique_by=lambda pair: pair[0]
).map(lambda pairs: sorted((until, 2 * size) for until, size in pairs))


@given(ramp=ramps, tokens=st.integers(0, 6000), applied=st.integers(0, 300))
def test_steps_and_tokens_are_each_others_inverse(
    ramp: list[tuple[int, int]], tokens: int, applied: int
) -> None:
    made = batch(ramp)
    obvious = sum(10 * made.global_batch_at(n) for n in range(applied))
    assert made.tokens_after(applied) == obvious
    steps = made.steps_for(tokens)
    assert made.tokens_after(steps) >= tokens
    assert steps == 0 or made.tokens_after(steps - 1) < tokens


def test_the_rate_follows_the_batch_where_it_is_scaled() -> None:
    made = batch([(60, 2), (180, 4)])
    plain = OptimConfig(lr=0.1, decay="none")
    scaled = OptimConfig(lr=0.1, decay="none", reference_tokens=20, scaling="linear", lr_cap=0.3)
    assert [learning_rate(plain, made, n, 9) for n in (0, 3, 6)] == [0.1] * 3
    found = [learning_rate(scaled, made, n, 9) for n in (0, 3, 6)]
    assert found == pytest.approx([0.1, 0.2, 0.3])


def test_lengths_in_tokens_count_the_ramp() -> None:
    made, optim = batch([(60, 2)]), OptimConfig(lr=0.1, warmup_tokens=140, decay_tokens=300)
    assert optim.warmup_length(made) == 4 and optim.decay_length(made, 99) == 6


@pytest.mark.parametrize(
    ("ramp", "words"),
    [([(50, 3)], "does not divide into micro-batches of 2"), ([(50, 2), (50, 4)], "that rise"),
     ([(50, 2), (20, 4)], "that rise"), ([(0, 2)], "that rise")],
)  # fmt: skip
def test_wrong_ramps_are_refused(ramp: list[tuple[int, int]], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        batch(ramp)


def test_what_a_ramp_does_not_go_with_is_refused(tmp_path: Path) -> None:
    ramp = ["batch.ramp=[[100, 4]]"]
    with pytest.raises(RecipeError, match="lanes cannot be added"):
        load_recipe(write_recipe(tmp_path, "mlstm"), ramp)
    path = write_recipe(tmp_path, "transformer")
    with pytest.raises(RecipeError, match="shares of updates"):
        load_recipe(path, [*ramp, "sparsity={kind: mixed, plan: rigl}"])
    with pytest.raises(RecipeError, match="a batch of batch.ramp=4 does not divide into 4 devices"):
        load_recipe(path, ramp).accumulation(4)
