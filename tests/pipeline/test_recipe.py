"""The whole recipe: what ships loads, mistakes are named, nothing is lost on the way to YAML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from data_prep.errors import RecipeError
from data_prep.recipe.loader import describe
from data_prep.recipe.section import SECTION_NAMES
from pipeline.recipe import Recipe, load_finetuning, load_grid, load_recipe
from pipeline.stages.graph import stage_called
from pipeline.stages.study import expand
from tests.pipeline.tiny import recipe_tree

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
FINETUNINGS = sorted((ROOT / "recipes" / "finetune").glob("*.yaml"))
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))


def write(folder: Path, kind: str = "mlstm", **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(folder, kind, **changes)))
    return path


def refused(folder: Path, kind: str = "mlstm", **changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, kind, **changes))
    return str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_that_ships_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.run.name == path.stem
    assert recipe.accumulation(1) >= 1


def test_recipes_ship() -> None:
    assert {"demo_mlstm", "demo_transformer"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", FINETUNINGS, ids=lambda path: path.stem)
def test_a_finetuning_that_ships_loads(path: Path) -> None:
    section = load_finetuning(path)
    assert section is not None and section.folder == f"runs/{path.stem}/finetune"


def test_finetunings_ship() -> None:
    found = {path.stem for path in FINETUNINGS}
    assert {"sst2", "imdb", "amazon_polarity", "own_csv"} <= found


def test_every_study_that_ships_expands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path in STUDIES:
        grid = load_grid(path)
        runs = expand(grid)
        assert len(runs) == len(grid.arms) * len(grid.seeds)
        assert len({recipe.run_folder for _, recipe in runs}) == len(runs)


def study(folder: Path, **changes: Any) -> Path:
    grid = {
        "name": "compare", "recipe": str(write(folder)), "seeds": [0, 7],
        "arms": {"narrow": ["model.hidden=8"], "plain": []}, "shared": ["run.steps=4"],
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"grid": grid | changes}))
    return path


def test_a_study_is_every_arm_with_every_seed(tmp_path: Path) -> None:
    runs = expand(load_grid(study(tmp_path)))
    found = [(n, r.model.hidden, r.run.seed, r.run.steps) for n, r in runs]  # type: ignore[union-attr]
    assert found == [
        ("narrow-seed0", 8, 0, 4), ("plain-seed0", 24, 0, 4),
        ("narrow-seed7", 8, 7, 4), ("plain-seed7", 24, 7, 4),
    ]  # fmt: skip
    assert [r.run_folder for _, r in runs] == [Path("runs/compare") / n for n, _ in runs]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": ["pretrian"]}, "'pretrian'.* are not stages; there are .*pretrain"),
        ({"arms": {"a": ["model.hiden=8"]}}, "did you mean 'hidden'"),
        ({"arms": {}}, "grid.arms"),
        ({"arm": {}}, "grid.arm: unknown key; did you mean 'arms'"),
    ],
)
def test_a_wrong_study_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        expand(load_grid(study(tmp_path, **changes)))


def test_recipes_and_studies_are_not_taken_for_each_other(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a study"):
        load_recipe(study(tmp_path))
    with pytest.raises(RecipeError, match="a study file holds one grid: section; found batch"):
        load_grid(write(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optm__lr": 1.0}, "unknown section 'optm'; did you mean 'optim'"),
        ({"optim__lrr": 1.0}, "optim.lrr: unknown key; did you mean 'lr'"),
        ({"model__hiden": 1}, "model.hiden: unknown key; did you mean 'hidden'"),
        ({"model__kind": "mlsm"}, "did you mean 'mlstm'"),
        ({"tokenizer__kind": "byte"}, "did you mean 'bytes'"),
        ({"eval__sentiment": {"pth": "x"}}, "eval.sentiment.pth: unknown key; did you mean 'path'"),
        ({"run__steps": "6"}, "run.steps: found '6' (str)"),
        ({"run__steps": 6.0}, "run.steps: found 6.0 (float)"),
        ({"run__steps": True}, "run.steps: found True (bool)"),
        ({"run__steps": 0}, "run.steps: found 0 (int)"),
        ({"run__name": "../up"}, "run.name"),
        ({"optim__betas": [0.9]}, "optim.betas"),
        ({"engine__zero_stage": 4}, "engine.zero_stage: found 4 (int)"),
        ({"head__kind": "softmx"}, "head: unknown kind 'softmx'"),
        ({"batch__micro_batch": 3}, "micro_batch 3 does not divide global_batch 8: choose a "
                                    "micro_batch such as 2"),
        ({"optim__warmup_steps": 6}, "optim.warmup_steps=6 is not shorter than run.steps=6"),
        ({"optim__warmup_steps": 9}, "optim.warmup_steps=9 is not shorter than run.steps=6"),
        ({"tokenizer": {"kind": "bpe"}}, "model.kind=mlstm reads bytes, but tokenizer.kind=bpe"),
        ({"data__split": {"validation": 0.6, "test": 0.4}}, "validation + test is 1.0"),
        ({"sparsity": {"kind": "mixed", "mask_head": True}, "head": {"kind": "sampled"}},
         "sparsity.mask_head with head.kind=sampled"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    message = refused(tmp_path, **changes)
    assert words in message and not message.startswith((".", ":"))


def test_a_missing_section_and_a_missing_key_are_named(tmp_path: Path) -> None:
    tree = recipe_tree(tmp_path, "mlstm")
    del tree["batch"], tree["optim"]["lr"]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(RecipeError, match="(?s)batch: missing.*optim.lr: missing"):
        load_recipe(path)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, optim__lrr=1, run__steps="x", model__hiden=3)
    assert "3 problems" in message
    assert all(key in message for key in ("optim.lrr", "run.steps", "model.hiden"))


def test_overrides_win_and_are_checked_like_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path)
    overrides = ["run.steps=9", "optim.lr=5e-4", "batch.skip_instances=[[8, 16]]", "run.name=x"]
    recipe = load_recipe(path, overrides)
    assert (recipe.run.steps, recipe.optim.lr) == (9, 5e-4)
    assert recipe.batch.skip_instances == [(8, 16)]
    assert recipe.run_folder == tmp_path / "runs" / "x"
    with pytest.raises(RecipeError, match="run.steps"):
        load_recipe(path, ["run.steps=many"])


def test_the_export_lies_in_the_run_unless_told_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert load_recipe(path).export_folder == tmp_path / "runs" / "mlstm" / "export"
    assert load_recipe(path, ["export.folder=out"]).export_folder == Path("out")


def test_how_a_run_is_started_is_no_reason_to_train_again(tmp_path: Path) -> None:
    path, pretrain = write(tmp_path), stage_called("pretrain")
    plain = pretrain.hash(load_recipe(path))
    assert pretrain.hash(load_recipe(path, ["run.processes=2", "run.max_restarts=9"])) == plain
    assert pretrain.hash(load_recipe(path, ["run.seed=9"])) != plain


def test_files_that_are_read_after_training_are_looked_for_before(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, finetune={"train": str(tmp_path)}))
    assert recipe.check_evaluation_files() == 1  # a folder will do
    recipe = load_recipe(write(tmp_path, finetune={"train": str(tmp_path / "a.csv")}))
    with pytest.raises(RecipeError, match=r"finetune.train: .*a.csv does not exist"):
        recipe.check_evaluation_files()


def test_only_the_mlstm_is_recurrent(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "mlstm")).recurrent
    assert not load_recipe(write(tmp_path, "gpt2")).recurrent


@pytest.mark.parametrize("kind", ["mlstm", "gpt2"])
def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path, kind: str) -> None:
    changes = {"optim__lr": 1e-5, "batch__skip_instances": [[0, 8]], "run__name": "010"}
    changes |= {"eval__prompts": ["no", "1:30", "naïve\n "], "finetune": {"train": "a.csv"}}
    recipe = load_recipe(write(tmp_path, kind, **changes))
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(again) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_that_ships_reads_back_as_itself(tmp_path: Path, path: Path) -> None:
    again = tmp_path / "again.yaml"
    again.write_text(load_recipe(path).to_yaml(), encoding="utf-8")
    assert load_recipe(again) == load_recipe(path)


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """All sections that an annotation can hold, nested ones included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections(field.annotation)
    for argument in get_args(annotation):
        yield from sections(argument)


def test_the_recipe_holds_the_sections_that_the_loader_knows() -> None:
    assert {*Recipe.model_fields, "grid"} == set(SECTION_NAMES)


def test_every_key_is_described() -> None:
    text = describe(Recipe)
    found = list(dict.fromkeys(sections(Recipe)))
    assert len(found) > 15
    for section in found:
        assert section.__doc__, section
        for name, field in section.model_fields.items():
            assert f"{name}: " in text, f"{section.__name__}.{name}"
            nested = any(True for _ in sections(field.annotation))
            if name != "kind" and not (nested and section is Recipe):
                assert field.description, f"{section.__name__}.{name}"
                assert f"# {field.description}" in text
