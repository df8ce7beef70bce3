"""A study over arms that fail, and one that is asked to stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from data_prep.errors import Diverged, PipelineError, StoppedAndSaved
from pipeline.recipe import Recipe
from pipeline.stages import study
from tests.pipeline.tiny import write_recipe


def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: PipelineError) -> list[str]:
    """The arms that were run when the first one ends with `error`."""
    grid = {"name": "s", "folder": str(tmp_path / "runs"), "seeds": [1],
            "recipe": str(write_recipe(tmp_path, "mlstm")), "stages": ["pretrain"],
            "arms": {"a": [], "b": ["optim.lr=0.02"]}}  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"grid": grid}))
    names: list[str] = []

    def run_stages(recipe: Recipe, stages: list[str], verify: bool) -> None:
        assert recipe.run.log_every_steps == 3 and not verify
        names.append(recipe.run.name)
        if len(names) == 1:
            raise error

    monkeypatch.setattr(study, "run_stages", run_stages)
    with pytest.raises(type(error)):
        study.run_study(path, ["run.log_every_steps=3"])
    return names


def test_an_arm_that_fails_leaves_the_others_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran(tmp_path, monkeypatch, Diverged("no number")) == ["a-seed1", "b-seed1"]


def test_a_stop_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ran(tmp_path, monkeypatch, StoppedAndSaved("asked to")) == ["a-seed1"]
