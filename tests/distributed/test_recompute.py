"""Activation checkpointing under ZeRO changes no loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.training import train_recipe
from tests.pipeline.tiny import losses, write_recipe
from tests.ranks import run_ranks

LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("kind", "stage"),
    [("transformer", 3), pytest.param("transformer", 0, marks=LONG),
     pytest.param("transformer", 2, marks=LONG), pytest.param("mlstm", 0, marks=LONG),
     pytest.param("mlstm", 3, marks=LONG)],
)  # fmt: skip
def test_losses_stay_the_same(tmp_path: Path, kind: str, stage: int) -> None:
    recipe = str(write_recipe(tmp_path, kind, engine__zero_stage=stage))
    for name, on in (("plain", "false"), ("again", "true")):
        run_ranks(
            2, train_recipe, recipe, [f"run.name={name}", f"engine.activation_checkpointing={on}"]
        )
    found, wanted = (losses(tmp_path / "runs" / name) for name in ("again", "plain"))
    assert found == pytest.approx(wanted, rel=1e-5) and len(found) == 6
