"""A first recipe for someone's own text: `python -m pipeline init FILE`.

    recipe = init_recipe(Path("reviews.csv.gz"), Path("recipes/reviews.yaml"), minutes=30)

`look` finds the text in the file, `machine` measures the computer, `size` chooses a model that
trains in the time given, `write` puts the recipe down with a comment on every key.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.errors import RecipeError
from data_prep.manifest import write_atomic
from pipeline.init.look import Found, look
from pipeline.init.machine import Machine, measure
from pipeline.init.size import Kind, Plan, plan
from pipeline.init.write import recipe_text
from pipeline.recipe import load_recipe

__all__ = ["init_recipe"]


def init_recipe(source: Path, out: Path, minutes: float, kind: Kind = "transformer") -> Path:
    """Write a commented recipe for `source` to `out`, for about `minutes` of training here.

    RecipeError when `out` exists or the minutes are not positive; DataError when `source` holds
    no text that can be trained on.
    """
    if out.exists():
        raise RecipeError(f"{out} exists already: give another name, or remove it first")
    if not minutes > 0:
        raise RecipeError(f"minutes is {minutes:g}: give how long training may take, above 0")
    found = look(source)
    machine = measure()
    chosen = plan(found.training_bytes, minutes, machine, kind)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, recipe_text(source, found, machine, chosen, minutes))
    load_recipe(out)
    _tell(source, out, found, machine, chosen)
    return out


def _tell(source: Path, out: Path, found: Found, machine: Machine, chosen: Plan) -> None:
    print(f"{source}: {found.format}, about {found.text_bytes:,} bytes of text ", end="")
    print(f"in {found.documents:,} documents")
    if found.text_field:
        others = ", ".join(found.others) or "none"
        print(f"text field: {found.text_field!r} (other fields: {others})")
    print(f"machine: {machine.describe()}")
    print(f"model: {chosen.describe()}")
    print(f"wrote {out}; read it, then run\n  python -m pipeline run {out}")
