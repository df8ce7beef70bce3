"""Reading a recipe: YAML plus `key=value` overrides, validated section by section.

`read_tree` gives the plain tree and knows only the section names, so a stage can load its own
sections without importing the others'. `validate` turns a section into its model and every
mistake in it into one message that names keys, values and the nearest valid name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ..errors import RecipeError
from ..secrets import find_secret
from .explain import describe, explain, nearest
from .section import SECTION_NAMES, Section
from .yaml import parse_yaml

_LONGEST = 1_000_000  # characters of a recipe; what is longer is another file

__all__ = ["SECTION_NAMES", "Section", "describe", "read_tree", "validate"]


def read_tree(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe at `path` as plain values, with dotted `key=value` overrides applied.

    RecipeError when the file is missing or malformed, a section name is unknown, an override does
    not lead anywhere, or a value looks like a secret.
    """
    try:
        tree = parse_yaml(_text_of(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not valid YAML: {_one_line(error)}") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {path} holds {_named(tree)}, expected sections such as data:")
    for name in tree:
        _check_section(str(name), f"recipe {path}")
    for override in overrides:
        _apply(tree, override)
    if key := find_secret(tree):
        raise RecipeError(
            f"{key} holds what looks like a password or a key, and recipes are copied into run "
            "folders and reports: remove it, and set the variable that the library reads "
            "(HF_TOKEN, AWS_SECRET_ACCESS_KEY)"
        )
    return tree


def _text_of(path: Path | str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(_LONGEST + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise RecipeError(f"recipe {path}: no such file; expected a YAML recipe") from None
    except OSError as error:
        raise RecipeError(f"recipe {path!s:.200} cannot be read: {error.strerror}") from None
    if len(text) > _LONGEST:
        raise RecipeError(f"recipe {path} is longer than {_LONGEST:,} characters: no recipe is")
    return text


def validate(model_cls: Any, value: Any, where: str) -> Any:
    """`value` (plain YAML values; None counts as empty) as `model_cls`, a Section or a union.

    `where` is the dotted key of the value in the recipe. RecipeError lists up to 20 problems.
    """
    value = {} if value is None else value
    try:
        # Through JSON, because strict mode then takes a YAML list where a tuple is declared.
        return TypeAdapter(model_cls).validate_json(json.dumps(value))
    except TypeError as error:
        raise RecipeError(f"{where}: {error}; expected plain YAML values") from None
    except ValidationError as error:
        raise RecipeError(explain(error, model_cls, where)) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise RecipeError(f"override {override!r}: expected key=value, such as batch.micro=4")
    _check_section(parts[0], f"override {override!r}")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: not YAML: {_one_line(error)}") from None
    place: Any = tree
    for part in parts[:-1]:
        place = _step(place, part, override)
    if isinstance(place, list):
        place[_index(place, parts[-1], override)] = value
    else:
        place[parts[-1]] = value


def _step(place: Any, part: str, override: str) -> Any:
    """The container one key below `place`, made when absent."""
    if isinstance(place, list):
        inner = place[_index(place, part, override)]
    else:
        if place.get(part) is None:
            place[part] = {}
        inner = place[part]
    if not isinstance(inner, dict | list):
        raise RecipeError(f"override {override!r}: {part!r} holds {_named(inner)}, not keys")
    return inner


def _index(items: list[Any], part: str, override: str) -> int:
    # A superscript is a digit too, but no number.
    if not part.isdecimal() or len(part) > 9 or int(part) >= len(items):
        count = f"a list of {len(items)}: expected a number below {len(items)}"
        raise RecipeError(f"override {override!r}: {part!r} leads into {count}")
    return int(part)


def _check_section(name: str, where: str) -> None:
    if name not in SECTION_NAMES:
        hint = nearest(name, SECTION_NAMES) or "the sections are " + ", ".join(SECTION_NAMES)
        raise RecipeError(f"{where}: unknown section {name!r}; {hint}")


def _named(value: Any) -> str:
    return f"{value!r:.60} ({type(value).__name__})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
