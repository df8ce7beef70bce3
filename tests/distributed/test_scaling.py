"""Weak scaling on two gloo ranks: a check of the bookkeeping, for two ranks share the cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.tiny import write_recipe
from tests.ranks import run_ranks


def rows(rank: int, path: str) -> list[Any]:
    from benchmarks.scaling import measure, rows_of
    from pipeline.recipe import load_recipe
    from pipeline.train.engine import init_distributed

    init_distributed(2)
    recipes = {
        stage: load_recipe(path, [f"engine.zero_stage={stage}", f"run.name=zero{stage}"])
        for stage in (0, 1)
    }
    found = {stage: measure(recipe, 1) for stage, recipe in recipes.items()}
    told = [(row.case, row.metric, row.ours, row.peer) for row in rows_of(recipes[0], found)]
    return [told, found]


@pytest.mark.parametrize("model", ["mlstm", pytest.param("transformer", marks=pytest.mark.long)])
def test_parts_of_a_step_are_told_beside_the_prediction(tmp_path: Path, model: str) -> None:
    changes = {"batch__global_batch": 4, "batch__micro_batch": 2}
    path = write_recipe(tmp_path, model, **changes)
    (told, found), (same, _) = run_ranks(2, rows, str(path))
    assert [row[:2] for row in told] == [row[:2] for row in same]
    base = found[0]
    assert set(found[1]).isdisjoint({"alone", "apart"})  # not without its exchange
    values = {
        (case.split()[3].rstrip(","), metric): (ours, peer) for case, metric, ours, peer in told
    }
    # An all-reduce between two sends each gradient once in and once out, halved over both.
    sent = base["gradient_bytes"] / 1e6
    assert values["zero0", "MB sent by a device"][0] == pytest.approx(sent)
    one_s = base["alone"] + base["update"]
    wire_s = base["gradient_bytes"] / base["link"]
    efficiency, predicted = values["zero1", "weak-scaling efficiency"]
    assert efficiency == pytest.approx(one_s / (found[1]["together"] + found[1]["update"]))
    assert predicted == pytest.approx(one_s / (one_s + wire_s))
    assert all("functional check" in case for case, *_ in told)
