"""A run goes on at another ZeRO stage, on another number of ranks, with another micro-batch."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.distributed.training import train_recipe
from tests.pipeline.tiny import losses, write_recipe
from tests.ranks import run_ranks

NO_DROPOUT = ["model.config.resid_pdrop=0", "model.config.embd_pdrop=0"]
STOP_AT = 3

# (stage, ranks) before and after; every pair is `long`.
SOME = [("mlstm", (3, 2), (0, 1)), ("transformer", (1, 1), (3, 2))]
LAYOUTS = list(itertools.product(range(4), (1, 2)))
ALL = [
    pytest.param(kind, before, after, marks=pytest.mark.long)
    for kind in ("mlstm", "transformer")
    for before, after in itertools.permutations([*LAYOUTS, (0, 4), (1, 4)], 2)
    if (kind, before, after) not in SOME
]


@pytest.mark.parametrize(("kind", "before", "after"), [*SOME, *ALL])
def test_a_run_goes_on_elsewhere(
    tmp_path: Path, kind: str, before: tuple[int, int], after: tuple[int, int]
) -> None:
    recipe = str(write_recipe(tmp_path, kind))
    fixed = NO_DROPOUT if kind == "transformer" else []

    def train(name: str, layout: tuple[int, int], *more: str, stop_at: int | None = None) -> None:
        stage, ranks = layout
        overrides = [f"run.name={name}", f"engine.zero_stage={stage}", *fixed, *more]
        run_ranks(ranks, train_recipe, recipe, overrides, stop_at)

    train("straight", before)
    train("cut", before, stop_at=STOP_AT)
    train("cut", after, "run.resume=must", "batch.micro_batch=1")
    wanted, found = losses(tmp_path / "runs/straight"), losses(tmp_path / "runs/cut")
    assert len(found) == len(wanted) == 6
    assert found[STOP_AT] == pytest.approx(wanted[STOP_AT], rel=1e-6)
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_run_in_fp32_goes_on_in_bf16(tmp_path: Path, stage: int) -> None:
    recipe = str(write_recipe(tmp_path, "transformer", engine__zero_stage=stage))
    for name, stop_at, more in (
        ("fp32", None, []), ("cut", STOP_AT, []),
        ("cut", None, ["run.resume=must", "precision.dtype=bf16"]),
    ):  # fmt: skip
        run_ranks(1, train_recipe, recipe, [f"run.name={name}", *NO_DROPOUT, *more], stop_at)
    found = losses(tmp_path / "runs/cut")
    assert found == pytest.approx(losses(tmp_path / "runs/fp32"), rel=2e-2)
    assert found[STOP_AT:] != losses(tmp_path / "runs/fp32")[STOP_AT:]
