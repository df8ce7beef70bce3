"""Words about recipe models: what is wrong with a value, and what a section may hold.

Both walk the model's annotations. Pydantic's error locations also name the chosen member of a
union; the walk drops those, so that messages show keys exactly as the recipe spells them.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_SHOWN = 20


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """`did you mean 'x'?` for the closest valid name, None when nothing is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else None


def explain(error: ValidationError, model_cls: Any, where: str) -> str:
    """One message for a failed section: a line per problem with key, found and expected."""
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        path, here = _walk(model_cls, detail["loc"])
        line = (
            ".".join(part for part in [where, *path] if part) + ": " + _sentence(detail, path, here)
        )
        if line not in lines:
            lines.append(line)
    if len(lines) == 1:
        return lines[0]
    shown = lines[:_SHOWN]
    if more := len(lines) - len(shown):
        shown.append(f"and {more} more")
    return f"{where or 'recipe'}: {len(lines)} problems\n  " + "\n  ".join(shown)


def describe(model_cls: Any, indent: str = "") -> str:
    """Every key of a section, a line each: name, type, default and description."""
    lines: list[str] = []
    models = _models(model_cls)
    for model in models:
        if len(models) > 1:
            lines.append(f"{indent}kind: {' | '.join(_kinds(model))}")
        inner = indent + ("  " if len(models) > 1 else "")
        for name, field in model.model_fields.items():
            if name != "kind" or len(models) == 1:
                lines.append(f"{inner}{name}: {_type(field.annotation)}{_default(field)}")
            if name != "kind" and field.description:
                lines[-1] += f"  # {field.description}"
            if nested := describe(field.annotation, inner + "  "):
                lines.append(nested)
    return "\n".join(lines)


def _sentence(detail: Any, path: list[str], here: type[BaseModel] | None) -> str:
    """What pydantic's error says, in the words of a recipe."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden" and here is not None:
        valid = list(here.model_fields)
        return f"unknown key; {nearest(path[-1], valid) or 'the keys are ' + ', '.join(valid)}"
    if kind == "missing":
        field = here.model_fields.get(path[-1]) if here else None
        about = f" ({field.description})" if field and field.description else ""
        return f"missing; it has no default{about}"
    if kind == "union_tag_not_found":
        return "missing key 'kind', which says what this is"
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        hint = nearest(str(context["tag"]), tags)
        listed = "expected kind: " + " | ".join(tags)
        return f"unknown kind {context['tag']!r}; {listed}" + (f"; {hint}" if hint else "")
    if kind == "value_error":
        return str(context["error"])
    found = f"found {detail['input']!r:.60} ({type(detail['input']).__name__}), "
    expected = detail["msg"].replace("Input should be ", "expected ")
    return found + expected


def _walk(annotation: Any, loc: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel] | None]:
    """The recipe path of an error location, and the model that its last key belongs to."""
    path: list[str] = []
    owner: type[BaseModel] | None = None
    for step in loc:
        models = _models(annotation)
        tagged = [model for model in models if step in _kinds(model)]
        if get_origin(_bare(annotation)) in (list, tuple, dict):
            path.append(str(step))
            annotation = _item(annotation)
        elif len(models) > 1 and tagged:
            annotation = tagged[0]
        elif models:
            owner = models[0]
            path.append(str(step))
            field = owner.model_fields.get(str(step))
            annotation = field.annotation if field else Any
        else:  # a member of a plain union such as int | str: no key of the recipe
            break
    return path, owner


def _bare(annotation: Any) -> Any:
    """The annotation without Annotated and without `| None`."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        some = [arg for arg in get_args(annotation) if arg is not type(None)]
        if len(some) == 1:
            return _bare(some[0])
    return annotation


def _item(annotation: Any) -> Any:
    """What a list, tuple or dict holds; of a fixed tuple, its first item stands for all."""
    arguments = get_args(_bare(annotation))
    return arguments[-1 if get_origin(_bare(annotation)) is dict else 0] if arguments else Any


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections an annotation can hold: itself, a union's members, or a container's items."""
    annotation = _bare(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for arg in get_args(annotation) for m in _models(arg)]
    if get_origin(annotation) in (list, tuple, dict):
        return _models(_item(annotation))
    return []


def _kinds(model: type[BaseModel]) -> list[str]:
    field = model.model_fields.get("kind")
    return [str(k) for k in get_args(field.annotation)] if field else []


def _type(annotation: Any) -> str:
    annotation = _bare(annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if origin in (list, tuple):
        return f"list of {_type(_item(annotation))}"
    if origin is dict:
        return f"mapping to {_type(_item(annotation))}"
    if _models(annotation):
        return "section"
    if origin in (Union, types.UnionType):
        return " | ".join(_type(a) for a in get_args(annotation) if a is not type(None))
    return getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return " (required)"
    value = field.get_default(call_default_factory=True)  # type: ignore[call-arg]
    return "" if isinstance(value, BaseModel) else f" = {value!r}"
