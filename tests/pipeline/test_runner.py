"""What becomes of earlier results when a stage runs again, or is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data_prep.errors import RecipeError
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder, StageOutput
from pipeline.stages.graph import STAGES, Stage, stage_called
from pipeline.stages.runner import run_stage, run_stages
from tests.pipeline.tiny import recipe_tree


def recipe_in(folder: Path, prompt: str = "a") -> Recipe:
    return Recipe.model_validate(recipe_tree(folder, "mlstm", eval__prompts=[prompt]))


def evaluate(refuse: bool = False, begun: bool = False) -> Stage:
    """An evaluation that writes its prompt, or is refused, with something written or nothing."""

    def work(recipe: Recipe) -> StageOutput:
        run = RunFolder(recipe.run_folder)
        path = run.evals / "prompt.json"
        if begun or not refuse:
            run.write_json(path, recipe.eval.prompts)
        if refuse:
            raise RecipeError("a wrong key")
        return StageOutput([path])

    return replace(stage_called("evaluate"), inputs=lambda recipe: [], work=work)


def test_a_refused_stage_leaves_the_result_that_stands(tmp_path: Path) -> None:
    run_stage(evaluate(), recipe_in(tmp_path))
    run = tmp_path / "runs/mlstm"
    before = (run / "stages/evaluate.json").read_bytes()
    with pytest.raises(RecipeError, match="a wrong key"):
        run_stage(evaluate(refuse=True), recipe_in(tmp_path, "b"))
    assert (run / "evals/prompt.json").read_text().split() == ["[", '"a"', "]"]
    assert (run / "stages/evaluate.json").read_bytes() == before
    assert list((run / "superseded").iterdir()) == []
    run_stage(evaluate(refuse=True), recipe_in(tmp_path))  # up to date: not called


def test_what_was_begun_stays_where_it_is(tmp_path: Path) -> None:
    run_stage(evaluate(), recipe_in(tmp_path))
    with pytest.raises(RecipeError):
        run_stage(evaluate(refuse=True, begun=True), recipe_in(tmp_path, "b"))
    run = tmp_path / "runs/mlstm"
    assert '"b"' in (run / "evals/prompt.json").read_text()
    assert '"a"' in (run / "superseded/evaluate-1/prompt.json").read_text()


def test_the_run_keeps_what_later_stages_were_made_with(tmp_path: Path) -> None:
    first = recipe_in(tmp_path)
    tree = recipe_tree(tmp_path, "mlstm", eval__prompts=["b"], model__hidden=48)
    later = Recipe.model_validate(tree)  # a model that nobody has trained
    run = RunFolder(first.run_folder)
    run.root.mkdir(parents=True)
    run.config.write_text(first.to_yaml())
    run_stage(evaluate(), later)
    config = yaml.safe_load(run.config.read_text())
    assert config["eval"]["prompts"] == ["b"]
    assert config["model"]["hidden"] == 24


def test_a_stage_that_the_recipe_does_not_ask_for(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the recipe has no finetune: section"):
        run_stages(recipe_in(tmp_path), ["finetune"])


def test_a_report_is_made_again_when_an_audit_has_come(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    (report,) = (stage for stage in STAGES if stage.name == "report")
    assert report.inputs(recipe) == []
    audit = RunFolder(recipe.run_folder).evals / "audit.json"
    RunFolder(recipe.run_folder).write_json(audit, {})
    assert report.inputs(recipe) == [audit]
