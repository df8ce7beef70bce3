"""Examples of the tasks, from files with the fields in which their authors published them.

Prompts are worded as in the Language Model Evaluation Harness (Gao et al.), so that results can be
compared with those that others report.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.errors import DataError
from pipeline.evaluate.labelled import read_rows
from pipeline.recipe.tasks import TaskName


class Example(NamedTuple):
    """Options that may follow their contexts after a space, and the number of the right one.

    Most tasks have one context for all options. WinoGrande's options stand in the contexts, and
    what follows is the same (partial evaluation, Trinh and Le 2018).
    """

    contexts: tuple[str, ...]  # one an option
    options: tuple[str, ...]
    right: int

    @property
    def answered(self) -> str:
        """The context with the right option."""
        return f"{self.contexts[self.right]} {self.options[self.right]}"


def read_examples(task: TaskName, path: Path | str, limit: int | None) -> list[Example]:
    """The first `limit` examples of a file, None for all.

    DataError names line, field and what is expected when an example has another shape, and the file
    when it holds none.
    """
    path = Path(path)
    parse, shape = _TASKS[task]
    found = []
    for line, row in islice(read_rows(path), limit):
        try:
            found.append(parse(row))
        except _WrongShape as problem:
            place = f"{path}, line {line}"
            raise DataError(f"{place}: {problem}; an example of {task} has {shape}") from None
    if not found:
        raise DataError(f"{path} holds no examples; one line each is expected, with {shape}")
    return found


class _WrongShape(Exception):
    """What an example lacks."""


def _lambada(row: dict[str, Any]) -> Example:
    context, space, word = _text(row, "text").rpartition(" ")
    if not context.strip() or not space or not word:
        raise _WrongShape(f"'text' ends in {word!r:.40}, expected a word with a context before it")
    return Example((context,), (word,), 0)


def _hellaswag(row: dict[str, Any]) -> Example:
    scene = f"{_text(row, 'ctx_a')} {_text(row, 'ctx_b').capitalize()}"
    endings = _texts(row, "endings", row.get("endings"))
    context = _without_marks(f"{_text(row, 'activity_label')}: {scene}")
    return _one_context(context, tuple(map(_without_marks, endings)), _number(row, "label", 0))


def _without_marks(text: str) -> str:
    """The text without the brackets that WikiHow's articles left in HellaSwag."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _piqa(row: dict[str, Any]) -> Example:
    options = (_text(row, "sol1"), _text(row, "sol2"))
    return _one_context(_question(_text(row, "goal")), options, _number(row, "label", 0))


def _arc(row: dict[str, Any]) -> Example:
    choices = row.get("choices")
    if not isinstance(choices, dict):
        raise _absent(row, "choices") if choices is None else _WrongShape("'choices' is no object")
    options = _texts(row, "choices.text", choices.get("text"))
    labels = _texts(row, "choices.label", choices.get("label"))
    key = _text(row, "answerKey")
    if key not in labels or len(labels) != len(options):
        raise _WrongShape(f"'answerKey' holds {key!r:.40}, the labels are {', '.join(labels)}")
    return _one_context(_question(_text(row, "question")), options, labels.index(key))


def _winogrande(row: dict[str, Any]) -> Example:
    before, gap, after = _text(row, "sentence").partition("_")
    if not gap or not after.strip():
        raise _WrongShape("'sentence' has no '_' with text after it")
    contexts = tuple(before + _text(row, f"option{number}") for number in (1, 2))
    return _checked(Example(contexts, (after.strip(),) * 2, _number(row, "answer", 1)))


def _question(text: str) -> str:
    return f"Question: {text}\nAnswer:"


def _one_context(context: str, options: tuple[str, ...], right: int) -> Example:
    return _checked(Example((context,) * len(options), options, right))


def _checked(example: Example) -> Example:
    if not 0 <= example.right < len(example.options):
        raise _WrongShape(f"the right one of {len(example.options)} options is not among them")
    if not all(example.options):
        raise _WrongShape("an option is empty")
    return example


def _absent(row: dict[str, Any], field: str) -> _WrongShape:
    return _WrongShape(f"no field {field!r}; the fields there are: {', '.join(row) or 'none'}")


def _text(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if value is None:
        raise _absent(row, field)
    if not isinstance(value, str):
        raise _WrongShape(f"{field!r} holds {value!r:.40}, expected text")
    return value


def _texts(row: dict[str, Any], field: str, values: Any) -> tuple[str, ...]:
    if values is None:
        raise _absent(row, field)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise _WrongShape(f"{field!r} holds {values!r:.40}, expected a list of texts")
    return tuple(values)


def _number(row: dict[str, Any], field: str, first: int) -> int:
    """Which option is right, counted from 0; the file counts from `first`, in digits or as text."""
    value = row.get(field)
    if value is None:
        raise _absent(row, field)
    if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value)):
        raise _WrongShape(f"{field!r} holds {value!r:.40}, expected a number from {first} on")
    return int(value) - first


# Of each task: how a row is read, and what it must have, for people.
_TASKS: dict[TaskName, tuple[Callable[[dict[str, Any]], Example], str]] = {
    "lambada": (_lambada, "text (the last word is asked for)"),
    "hellaswag": (
        _hellaswag,
        "activity_label, ctx_a, ctx_b (text), endings (a list of texts), label (from 0)",
    ),
    "piqa": (_piqa, "goal, sol1, sol2 (text), label (0 or 1)"),
    "arc_easy": (_arc, "question, choices (an object of lists text and label), answerKey (text)"),
    "arc_challenge": (
        _arc,
        "question, choices (an object of lists text and label), answerKey (text)",
    ),
    "winogrande": (_winogrande, "sentence (with a _), option1, option2 (text), answer (1 or 2)"),
}
