"""The shape of the code: who may import whom, sizes, and what must stand in one place only."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for top in ("data_prep", "pipeline") for path in (ROOT / top).rglob("*.py"))
SOURCES = {path: ast.parse(path.read_text("utf-8")) for path in FILES}

# Nothing imports what stands to the right of it.
ORDER = (
    "data_prep", "pipeline.clock", "pipeline.flops", "pipeline.products", "pipeline.progress",
    "pipeline.seeds",
    "pipeline.protocols",
    "pipeline.ranks", "pipeline.environment", "pipeline.run_folder", "pipeline.recipe",
    "pipeline.data", "pipeline.models", "pipeline.heads", "pipeline.sparsity", "pipeline.optim",
    "pipeline.train", "pipeline.export",
    "pipeline.evaluate", "pipeline.audit", "pipeline.finetune", "pipeline.report",
    "pipeline.watch", "pipeline.init",
    "pipeline.plan", "pipeline.preflight", "pipeline.stages", "pipeline.arguments",
    "pipeline.__main__",
)  # fmt: skip
# Neighbours that know nothing of each other: what joins them stands further right.
STRANGERS = (
    ("pipeline.data", "pipeline.models", "pipeline.heads", "pipeline.sparsity", "pipeline.optim"),
    ("pipeline.train", "pipeline.report", "pipeline.watch"),
    ("pipeline.export", "pipeline.report"),
    ("pipeline.evaluate", "pipeline.report"),
    ("pipeline.audit", "pipeline.finetune", "pipeline.report"),
    ("pipeline.finetune", "pipeline.report", "pipeline.init"),
)
HEAVY = {"torch", "transformers", "deepspeed", "accelerate", "datasets", "pipeline"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in FILES}


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Every module that is imported anywhere in a file, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                up = node.level - is_package
                base = ".".join([*parts[: len(parts) - up], *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in MODULES else base


def imports_of(path: Path) -> set[str]:
    return set(imports(SOURCES[path], module_of(path), path.name == "__init__.py"))


def unit(module: str) -> str:
    """The entry of ORDER that a module belongs to."""
    parts = module.split(".")
    return parts[0] if parts[0] == "data_prep" else ".".join(parts[:2])


def edges() -> dict[tuple[str, str], str]:
    """(unit, imported unit) -> an example."""
    found = {}
    for path, name in ((p, n) for p in FILES for n in imports_of(p)):
        ours, theirs = unit(module_of(path)), unit(name)
        if name.split(".")[0] in ("data_prep", "pipeline") and ours != theirs:
            found[ours, theirs] = f"{module_of(path)} imports {name}"
    return found


def test_relative_imports_and_imports_in_functions_are_seen() -> None:
    tree = ast.parse(
        "from . import errors\nfrom ..errors import X\ndef f():\n  import torch.nn as n"
    )
    found = list(imports(tree, "data_prep.recipe.loader", is_package=False))
    assert found == ["data_prep.recipe", "data_prep.errors", "torch.nn"]
    tree = ast.parse("from .data import X\nfrom pipeline.train import checkpoint")
    assert list(imports(tree, "data_prep.recipe", True)) == [
        "data_prep.recipe.data", "pipeline.train.checkpoint",
    ]  # fmt: skip


def test_every_part_has_a_place_in_the_order() -> None:
    units = {unit(module) for module in MODULES if module != "pipeline"}
    assert units <= set(ORDER)
    assert units >= set(ORDER)


def test_nothing_imports_what_stands_to_the_right_of_it() -> None:
    found = edges()
    assert len(found) > 30
    assert [e for (a, b), e in found.items() if ORDER.index(b) > ORDER.index(a)] == []


def test_neighbours_know_nothing_of_each_other() -> None:
    pairs = {pair for group in STRANGERS for pair in itertools.permutations(group, 2)}
    assert [example for pair, example in edges().items() if pair in pairs] == []


def test_no_module_leads_back_to_itself() -> None:
    graph = {module_of(path): imports_of(path) & MODULES - {module_of(path)} for path in FILES}
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_data_prep_needs_none_of_the_training_libraries() -> None:
    heavy = {
        (module_of(path), name)
        for path in FILES
        if path.is_relative_to(ROOT / "data_prep")
        for name in imports_of(path)
        if name.split(".")[0] in HEAVY
    }
    # Reading datasets is what the one source is for; it is imported when a recipe names it.
    assert heavy == {("data_prep.sources.hub", "datasets")}


def test_a_recipe_can_be_read_without_torch() -> None:
    light = ("pipeline.recipe", "pipeline.run_folder", "pipeline.environment", "pipeline.clock",
             "pipeline.report", "pipeline.watch", "pipeline.init")  # fmt: skip
    found = {
        (module_of(path), name)
        for path in FILES
        if unit(module_of(path)) in light
        for name in imports_of(path)
        if name.split(".")[0] in HEAVY - {"pipeline"}
    }
    assert found == set()


def calls(node: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the last part of the name it calls."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            yield ast.unparse(inner.func).rpartition(".")[2], inner


def test_only_the_engine_starts_deepspeed() -> None:
    starts = {
        module_of(path)
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Name | ast.ImportFrom)
        and re.fullmatch(r"deepspeed\.initialize|from deepspeed import .*\binitialize\b.*",
                         ast.unparse(node))
    }  # fmt: skip
    assert starts == {"pipeline.train.engine"}


def test_no_model_code_from_elsewhere_is_ever_run() -> None:
    trusting = [
        f"{module_of(path)}:{node.lineno}"
        for path, tree in SOURCES.items()
        for _, node in calls(tree)
        for keyword in node.keywords
        if keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False"
    ]
    named = [
        f"{module_of(path)}:{node.lineno}"
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value == "trust_remote_code"
    ]
    assert trusting + named == []


def test_files_stay_small_and_have_names_that_say_something() -> None:
    lines = {module_of(path): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {name: n for name, n in lines.items() if n > 400} == {}
    assert median(n for n in lines.values() if n > 5) < 180
    assert not {"utils", "util", "helpers", "common", "misc"} & {path.stem for path in FILES}


def test_every_module_says_what_it_is() -> None:
    silent = [module_of(p) for p, tree in SOURCES.items() if not ast.get_docstring(tree)]
    assert silent == []


# Collectives -----------------------------------------------------------------------------------

_BASE = {"barrier", "all_reduce", "all_gather", "all_gather_object", "broadcast", "gather",
         "broadcast_object_list", "reduce", "reduce_scatter", "scatter", "gather_objects",
         "agree", "from_rank0", "save_checkpoint", "load_checkpoint", "get_gradient",
         "set_gradient", "get_parameter", "set_parameter", "get_moment", "set_moment"}  # fmt: skip
_ONE_RANK = re.compile(
    r"\brank\(\)|\bget_rank\(\)|\b_?rank\b *[=!<>]=?|\._writes\b|is_main_process"
)


@cache
def collectives() -> set[str]:
    """Collective calls of PyTorch and of ours, and everything whose docstring says so."""
    ours = {
        node.name
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and re.search(r"\bCollective[.:]", ast.get_docstring(node) or "")
    }
    return _BASE | ours


def on_some_ranks(tree: ast.AST) -> Iterator[ast.AST]:
    """Code that runs on some ranks only: branches on the rank, and what follows a way out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While) and _ONE_RANK.search(ast.unparse(node.test)):
            yield from [*node.body, *node.orelse]
        elif isinstance(node, ast.IfExp) and _ONE_RANK.search(ast.unparse(node.test)):
            yield from (node.body, node.orelse)
        elif isinstance(node, ast.BoolOp) and _ONE_RANK.search(ast.unparse(node.values[0])):
            yield from node.values[1:]
        for block in (getattr(node, name, []) for name in ("body", "orelse", "finalbody")):
            ways_out = [
                i for i, inner in enumerate(block if isinstance(block, list) else [])
                if isinstance(inner, ast.If) and _ONE_RANK.search(ast.unparse(inner.test))
                and isinstance(inner.body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)
            ]  # fmt: skip
            if ways_out:
                yield from block[ways_out[0] + 1 :]


def lonely(tree: ast.AST) -> set[str]:
    names = collectives()
    return {name for part in on_some_ranks(tree) for name, _ in calls(part) if name in names}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_collective_waits_for_ranks_that_never_come(path: Path) -> None:
    assert lonely(SOURCES[path]) == set()


@pytest.mark.parametrize(
    "code",
    [
        "if rank() == 0:\n  barrier()",
        "if ranks.rank() != 0:\n  pass\nelse:\n  dist.all_reduce(x)",
        "if self._writes:\n  for x in y:\n    engine.save(x, 'tag')",
        "def f():\n  if not self._writes:\n    return\n  print(agree(work))",
        "x = gather_objects(1) if rank() == 0 else None",
        "rank() == 0 and barrier()",
        "if self.rank == 0:\n  run.evaluate()",
    ],
)
def test_a_collective_on_some_ranks_is_seen(code: str) -> None:
    assert len(lonely(ast.parse(code))) == 1


def test_what_all_ranks_do_is_left_alone() -> None:
    code = "if rank() == 0:\n  print(1)\nbarrier()\nif world_size() > 1:\n  all_reduce(x)"
    assert lonely(ast.parse(code)) == set()
    assert {"save", "commit", "begin", "evaluate", "start_run"} <= collectives()
