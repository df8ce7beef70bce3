"""Plans, densities and topology: pure functions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import RecipeError
from data_prep.recipe.loader import validate
from pipeline.recipe.sparsity import SparsityConfig
from pipeline.seeds import generator_for
from pipeline.sparsity.densities import share_out
from pipeline.sparsity.plan import READY, Phase, Plan, build_plan, solve
from pipeline.sparsity.topology import evolve, random_mask, scores, spread

torch.set_num_threads(1)


def section(**keys: object) -> object:
    return validate(SparsityConfig, {"kind": "mixed", **keys}, "sparsity")


def test_lookup_walks_through_the_phases() -> None:
    plan = READY["mst"]
    assert [plan.lookup(step, 100)[0] for step in (0, 9, 10, 79, 80, 89, 90, 99, 100)] == [
        0, 0, 1, 1, 2, 2, 3, 3, 3,
    ]  # fmt: skip
    assert plan.lookup(45, 100) == (1, 0.5)
    assert plan.lookup(10, 100) == (1, 0.0)
    assert plan.density == pytest.approx(0.05 + 0.07 + 0.03 + 0.1)


def test_phases_shorter_than_a_step_are_passed_over() -> None:
    plan = Plan((Phase("a", 0.001, 0.5), Phase("b", 1.0, 1.0)), 1.0)
    assert plan.lookup(0, 10) == (1, 0.0)


def test_drop_fraction_falls_by_a_cosine_and_starts_again_with_each_phase() -> None:
    plan = READY["mst"]
    assert plan.drop_fraction(0, 1000) == plan.drop_fraction(100, 1000) == pytest.approx(0.3)
    assert plan.drop_fraction(450, 1000) == pytest.approx(0.15)
    assert plan.drop_fraction(799, 1000) < 1e-5
    assert plan.drop_fraction(950, 1000) == 0.0


def test_own_phases_take_the_place_of_the_plan() -> None:
    phases = [
        {"name": "a", "until": 0.5, "density": 0.5},
        {"name": "b", "until": 1, "density": 1.0, "attention": "sparse"},
    ]
    plan = build_plan(section(plan="rigl", phases=phases))  # type: ignore[arg-type]
    assert plan == Plan((Phase("a", 0.5, 0.5, 0.3), Phase("b", 1.0, 1.0, 0.3, True)), 1.0)
    dense = build_plan(section(attention=None))  # type: ignore[arg-type]
    assert not any(phase.sparse_attention for phase in dense.phases)


@pytest.mark.parametrize(
    "phases, words",
    [
        ([{"name": "a", "until": 0.5, "density": 0.5}], "the last of them 1"),
        (
            [
                {"name": "a", "until": 0.5, "density": 0.5},
                {"name": "b", "until": 0.4, "density": 0.1},
                {"name": "c", "until": 1, "density": 1},
            ],
            r"phases end at \[0.5, 0.4, 1.0\]: expected rising shares",
        ),
        ([{"name": "a", "until": 1.5, "density": 0.5}], "less than or equal to 1"),
        ([{"name": "a", "until": 1, "density": 0}], "greater than 0"),
        ([{"name": "a", "until": 1, "density": 1.01}], "less than or equal to 1"),
    ],
)
def test_phases_that_make_no_plan_are_refused(phases: list[dict], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        section(phases=phases)


def test_solving_moves_the_lowest_density() -> None:
    plan = solve(READY["mst"], 0.22, lambda p: p.density)
    assert plan.density == pytest.approx(0.22, abs=1e-6)
    moved = [(a.density, b.density) for a, b in zip(READY["mst"].phases, plan.phases, strict=True)]
    assert [a == b for a, b in moved] == [True, False, True, True]
    both = solve(READY["rigl"], 0.3, lambda p: p.density)
    assert {phase.density for phase in both.phases} == {both.phases[0].density}


def test_a_target_out_of_reach_is_refused_with_the_range() -> None:
    with pytest.raises(RecipeError, match=r"can use 0\.\d+ to 0\.\d+ of the dense FLOPs"):
        solve(READY["mst"], 0.1, lambda p: p.density)


SHAPES = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=8)


@given(SHAPES, st.floats(0.01, 1.0))
def test_erdos_renyi_meets_the_density_and_keeps_narrow_matrices_denser(
    shapes: list[tuple[int, int]], density: float
) -> None:
    shares = share_out(shapes, density, "erdos_renyi")
    sizes = [math.prod(shape) for shape in shapes]
    total = sum(share * size for share, size in zip(shares, sizes, strict=True))
    assert total == pytest.approx(density * sum(sizes))
    assert all(0 < share <= 1 + 1e-9 for share in shares)
    raw = [sum(shape) / math.prod(shape) for shape in shapes]
    open_ones = [s / r for s, r in zip(shares, raw, strict=True) if s < 1 - 1e-9]
    assert not open_ones or max(open_ones) == pytest.approx(min(open_ones))


def test_erdos_renyi_of_gpt2_small_with_its_tied_head() -> None:
    d = 768
    shapes = [*12 * [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)], (50304, d)]
    shares = share_out(shapes, 0.1, "erdos_renyi")
    assert shares[:4] == pytest.approx([0.108, 0.162, 0.101, 0.101], abs=6e-4)
    assert shares[-1] == pytest.approx(0.082, abs=6e-4)
    assert share_out(shapes, 0.1, "uniform") == [0.1] * 49


def obvious(
    mask: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, active: int, fraction: float
) -> set[int]:
    """Units that survive and those that grow by gradient, by sorting plain lists."""
    units = [i for i, alive in enumerate(mask.flatten().tolist()) if alive]
    drop = max(int(fraction * len(units)), len(units) - active)
    kept = sorted(units, key=lambda i: -weight.flatten()[i].item())[: len(units) - drop]
    rest = [i for i in range(mask.numel()) if i not in kept]
    grown = sorted(rest, key=lambda i: -gradient.flatten()[i].item())[: active - len(kept)]
    return {*kept, *grown}


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 12), columns=st.integers(1, 12), before=st.floats(0, 1),
    after=st.floats(0, 1), fraction=st.sampled_from([0.0, 0.1, 0.3, 0.9]), seed=st.integers(0, 999),
)  # fmt: skip
def test_evolution_by_gradient_alone_is_that_of_the_obvious_lists(
    rows: int, columns: int, before: float, after: float, fraction: float, seed: int
) -> None:
    generator = generator_for(seed, 0, "x")
    units = rows * columns
    mask = random_mask((rows, columns), round(before * units), generator)
    weight = torch.rand(rows, columns, generator=generator)
    gradient = torch.rand(rows, columns, generator=generator)
    active = round(after * units)
    found = evolve(mask, weight, gradient, active, fraction, 1.0, generator)
    assert set(found.flatten().nonzero().flatten().tolist()) == obvious(
        mask, weight, gradient, active, fraction
    )


def test_growth_is_mixed_three_to_one() -> None:
    generator = generator_for(1, 100, "layer")
    mask = random_mask((40, 40), 400, generator)
    weight, gradient = torch.rand(40, 40), torch.rand(40, 40)
    next_mask = evolve(mask, weight, gradient, 400, 0.3, 0.75, generator)
    assert int(next_mask.sum()) == 400
    kept = torch.zeros(1600, dtype=torch.bool)
    kept[weight.masked_fill(~mask, -1).flatten().topk(280).indices] = True
    assert bool((next_mask.flatten() & kept).sum() == 280)
    best = gradient.flatten().masked_fill(kept, -1).topk(90).indices
    assert next_mask.flatten()[best].all()  # 3/4 of 120 by gradient
    others = next_mask.flatten() & ~kept
    others[best] = False
    assert int(others.sum()) == 30  # and the rest anywhere
    again = evolve(mask, weight, gradient, 400, 0.3, 0.75, generator_for(1, 100, "layer"))
    other = evolve(mask, weight, gradient, 400, 0.3, 0.75, generator_for(1, 200, "layer"))
    assert not torch.equal(again, other)


def test_scores_of_blocks_are_sums_of_magnitudes() -> None:
    values = torch.randn(6, 9, dtype=torch.float64)
    found = scores(values, 3)
    for i in range(2):
        for j in range(3):
            part = values[3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
            assert found[i, j] == pytest.approx(float(part.abs().sum()))
    mask = random_mask((2, 3), 3, generator_for(0, 0, "x"))
    assert torch.equal(scores(spread(mask, 3).double(), 3) == 9, mask)
    assert torch.equal(scores(values, 1), values.abs())
