"""Recipes that are wrong in ways nobody thought of: a PipelineError each, never a traceback.

Shipped recipes are mutated as trees and as text, with hypothesis; deterministic and bounded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_prep.errors import PipelineError, RecipeError
from data_prep.recipe.loader import read_tree, validate
from data_prep.recipe.yaml import parse_yaml
from pipeline.optim.registry import optimizer_class
from pipeline.plan.memory import meta_module
from pipeline.recipe import Recipe, load_grid, load_recipe
from pipeline.recipe.deepspeed import derive_deepspeed, resolve_dtype
from pipeline.stages.study import expand

ROOT = Path(__file__).parents[2]
RECIPES = sorted(p for p in (ROOT / "recipes").glob("*.yaml"))
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
TREES = [read_tree(path) for path in RECIPES]
GRIDS = [read_tree(path) for path in STUDIES]

bounded = settings(
    derandomize=True, deadline=None, max_examples=120, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip

numbers = st.sampled_from([0, -1, 1, 2, 3, 10**9, 10**18, 2**64, -(10**30), 10**400, 0.5, -0.1])
floats = st.sampled_from([1e308, -1e308, 1e-320, float("inf"), float("-inf"), float("nan")])
texts = st.sampled_from(
    ["", " ", "auto", "none", "../..", "/", "~", "a" * 5000, "né\u2028", "\x7f", "1e3", "mlstm",
     "softmax", "transformer", "bpe", "mixed", "gram", "bytes", "mst", "${HOME}", "$(id)", "`id`"]
)  # fmt: skip
scalars = st.one_of(st.none(), st.booleans(), numbers, floats, texts)
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["kind", "path", "0", "", "n_layer"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a tree but the root."""
    if path:
        yield path
    inner: Any = value.items() if isinstance(value, dict) else ()
    for key, part in enumerate(value) if isinstance(value, list) else inner:
        yield from places(part, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, trees: list[dict[str, Any]]) -> dict[str, Any]:
    """A tree with one to four values replaced, removed, renamed, added or taken from elsewhere."""
    tree = copy.deepcopy(draw(st.sampled_from(trees)))
    for _ in range(draw(st.integers(1, 4))):
        spots = list(places(tree))
        if not spots:
            break
        *path, last = draw(st.sampled_from(spots))
        parent = tree
        for key in path:
            parent = parent[key]
        how = draw(st.sampled_from(["replace", "replace", "remove", "add", "swap"]))
        if how == "remove":
            del parent[last]
        elif how == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["unknown", "lr", "kind", "", 7, None, True]))] = draw(junk)
        elif how == "swap":
            donor = draw(st.sampled_from(trees))
            *way, end = draw(st.sampled_from(list(places(donor))))
            for key in way:
                donor = donor[key]
            parent[last] = copy.deepcopy(donor[end])
        else:
            parent[last] = draw(junk)
    return tree


def checked(recipe: Recipe) -> None:
    """What can be said about a recipe without building the model."""
    for world_size in (1, 3):
        try:
            recipe.accumulation(world_size)
            derive_deepspeed(recipe, world_size, resolve_dtype(recipe, cuda_bf16=False))
        except RecipeError:
            pass
    optimizer_class(recipe.optim.name, recipe.engine.zero_stage)
    recipe.optim.peak_lr(recipe.batch.tokens)
    recipe.batch.tokens_after(min(recipe.run.steps, 1000))
    recipe.evaluation_files()
    assert load_again(recipe) == recipe


def load_again(recipe: Recipe) -> Recipe:
    """The resolved recipe is itself a recipe: nothing is lost on the way through the run folder."""
    again: Recipe = validate(Recipe, parse_yaml(recipe.to_yaml()), "")
    return again


def foreseen(work: Any) -> None:
    """Run `work`; what it raises is a PipelineError with a message that any terminal can show."""
    try:
        work()
    except PipelineError as error:
        message = str(error)
        assert message.strip() and len(message) < 20_000
        message.encode()


@bounded
@given(mutated(TREES))
def test_a_mutated_recipe_is_taken_or_refused(tmp_path: Path, tree: dict[str, Any]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    foreseen(lambda: checked(load_recipe(path)))


MODEL_KEYS = st.sampled_from(
    ["n_layer", "n_head", "n_embd", "n_inner", "n_positions", "activation_function", "dtype",
     "resid_pdrop", "layer_norm_epsilon", "tie_word_embeddings", "id2label", "architectures",
     "auto_map", "bos_token_id", "chunk_size_feed_forward", "initializer_range"]
)  # fmt: skip


@settings(bounded, max_examples=60)
@given(st.dictionaries(MODEL_KEYS, junk, min_size=1, max_size=2))
def test_a_model_of_any_values_is_built_or_refused(config: dict[str, Any]) -> None:
    tree = copy.deepcopy(TREES[[path.stem for path in RECIPES].index("demo_transformer")])
    tree["model"]["config"] |= config

    def build() -> None:
        meta_module(validate(Recipe, tree, ""))

    foreseen(build)


NOISE = st.sampled_from(
    ["{", "}", "[", "]", ":", "- ", "\t", "&a ", "*a", "<<: *a", "!!python/name:os.system", "!x ",
     "|", ">", "'", '"', "#", "? ", "---\n", "...\n", "%YAML 1.1\n", "\x00", "\ufeff", "\u0085",
     "9" * 5000, "[" * 300, "=", "~", "!!binary aaa", "\\ud800", '"\\ud800"', "@", "`", "\r"]
)  # fmt: skip


@bounded
@given(st.sampled_from(RECIPES), st.lists(st.tuples(st.integers(0, 10**6), NOISE), max_size=4),
       st.integers(0, 10**6))  # fmt: skip
def test_noise_in_the_text_of_a_recipe(
    tmp_path: Path, source: Path, noise: list[tuple[int, str]], cut: int
) -> None:
    text = source.read_text()
    for place, piece in noise:
        place %= len(text)
        text = text[:place] + piece + text[place:]
    if not noise:
        text = text[: cut % len(text)]
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    foreseen(lambda: checked(load_recipe(path)))


@bounded
@given(st.binary(max_size=200))
def test_bytes_that_are_no_recipe(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    foreseen(lambda: load_recipe(path))
    foreseen(lambda: load_grid(path))


keys = st.sampled_from(
    sorted({".".join(map(str, path)) for tree in TREES for path in places(tree)})
    + ["", ".", "run", "run.", "data.sources.-1.path", "data.sources.99", "grid.name", "model.x.y",
       "data.sources.0", "data.sources.²", "run.name.x", "optim.lr\n", "eval.transfer..x"]
)  # fmt: skip
values = st.one_of(
    junk.map(lambda value: yaml.safe_dump(value, default_flow_style=True)),
    NOISE, st.text(max_size=8),
)  # fmt: skip


@bounded
@given(st.sampled_from(RECIPES[:2]), st.lists(st.tuples(keys, values), min_size=1, max_size=3))
@example(RECIPES[0], [("model", "[1]"), ("model.kind", "mlstm")])
@example(RECIPES[0], [("data.sources.²", "1")])
def test_overrides_are_taken_or_refused(source: Path, pairs: list[tuple[str, str]]) -> None:
    foreseen(lambda: checked(load_recipe(source, [f"{key}={value}" for key, value in pairs])))


@settings(bounded, max_examples=100)
@given(mutated(GRIDS))
def test_a_mutated_study_is_taken_or_refused(tmp_path: Path, tree: dict[str, Any]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree))
    foreseen(lambda: expand(load_grid(path)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run: !!python/object/apply:os.system [touch x]", "tag"),
        ("run: !!python/name:os.system", "tag"),
        ("run: !include other.yaml", "tag"),
        ("run: {name: a, name: b}", "given twice"),
        ("run: &a {name: *a}", "inside what it names"),
        ("run: " + "[" * 100, "deep"),
        ("run: {name: a, _target_: os.system}", "unknown key"),
        ("run: {name: a, class_path: os.system}", "unknown key"),
        ("run: {steps: ${oc.env:HOME}}", "YAML"),
    ],
)
def test_a_recipe_cannot_name_code_or_reach_outside(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)


def test_aliases_of_aliases_are_counted_before_they_are_written_out(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]"
        for p, n in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text("model:\n  " + "\n  ".join(lines))
    with pytest.raises(RecipeError, match="more than 100,000 values"):
        load_recipe(path)
