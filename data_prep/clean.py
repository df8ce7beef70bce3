"""Cleaning: a pure function from raw text to the text a model is trained on.

A profile is a list of steps in a fixed order. Steps run over a block of texts at a time, each
behind a cheap test that most texts fail, because most reviews need no change at all.
`docs/corpora.md` tells what each profile does and where it comes from.
"""

from __future__ import annotations

import html
import operator
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .errors import DataError, RecipeError
from .recipe.data import CleanConfig

_TAG = re.compile(r"<[a-zA-Z/!][^<>]*>")
_ANY_TAG = re.compile(r"<.*?>")  # as process_str of Puri et al. has it: never across lines
# Category Cc without the characters that Unicode counts as white space: those separate words.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")


class Step(NamedTuple):
    """A named change, and the test that says which texts it could change."""

    name: str
    applies: Callable[[str], object]
    change: Callable[[str], str]


def clean(text: str, config: CleanConfig, counts: Counter[str] | None = None) -> str | None:
    """The cleaned text, or None when it is dropped for its length; see `clean_texts`."""
    return clean_texts([text], config, Counter() if counts is None else counts)[0]


def clean_texts(
    texts: Sequence[str], config: CleanConfig, counts: Counter[str]
) -> list[str | None]:
    """Each text cleaned, None in the place of one that is dropped.

    `counts` gains one per text and step that changed it, `too_short` and `too_long` for those
    dropped, and the characters that folding lost (`characters_folded` of `characters_seen`).
    RecipeError when the profile needs a library that is not installed.
    """
    current = list(texts)
    for step in _steps(config):
        if step.name == "fold_ascii":
            _count_folded(current, counts)
        before = current
        current = [step.change(text) if step.applies(text) else text for text in before]
        if changed := sum(map(operator.ne, before, current)):
            counts[step.name] += changed
    return _within_length(current, config, counts)


def refuse_folded(counts: Counter[str], config: CleanConfig) -> None:
    """DataError when folding to ASCII lost more of the corpus than the recipe allows."""
    seen, folded = counts["characters_seen"], counts["characters_folded"]
    if seen and folded > config.max_folded_share * seen:
        found = f"{folded:,} of {seen:,} characters ({folded / seen:.2%}) are not ASCII"
        hint = "use profile modern or openai, or raise data.clean.max_folded_share"
        raise DataError(
            f"profile {config.profile} would lose text: {found}, expected at most "
            f"{config.max_folded_share:.2%}; {hint}"
        )


def _within_length(
    texts: Sequence[str], config: CleanConfig, counts: Counter[str]
) -> list[str | None]:
    low, high = config.min_characters, config.max_characters
    kept = [text if low <= len(text) <= high else None for text in texts]
    if None in kept:
        dropped = [text for text, still in zip(texts, kept, strict=True) if still is None]
        counts["too_short"] += (short := sum(len(text) < low for text in dropped))
        counts["too_long"] += len(dropped) - short
    return kept


def _steps(config: CleanConfig) -> list[Step]:
    entities = Step("entities", operator.methodcaller("__contains__", "&"), html.unescape)
    if config.profile == "openai":
        return [entities, Step("newlines", _has_newline, _one_line), _STRIP]
    if config.profile == "nvidia":
        tags = Step("tags", _has_angle, lambda text: _ANY_TAG.sub(" ", text))
        return [tags, Step("fold_ascii", _not_ascii, _folding()), entities, _WHITESPACE]
    modern = [
        entities,
        Step("unicode_nfc", _not_ascii, lambda text: unicodedata.normalize("NFC", text)),
        Step("control", _CONTROL.search, lambda text: _CONTROL.sub("", text)),
        Step("newlines", lambda text: "\r" in text, _unix_newlines),
    ]
    # Tags before entities, so that an escaped &lt;b&gt; stays text; white space last, so that it
    # also closes the gaps the other steps leave.
    before = [Step("tags", _has_angle, lambda text: _TAG.sub(" ", text))]
    return (
        before * config.strip_tags
        + modern * (config.profile == "modern")
        + [_WHITESPACE] * config.collapse_whitespace
    )


def _not_ascii(text: str) -> bool:
    return not text.isascii()


def _has_angle(text: str) -> bool:
    return "<" in text


def _has_newline(text: str) -> bool:
    return "\n" in text


def _one_line(text: str) -> str:
    return text.replace("\n", " ")


def _unix_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _always(_: str) -> bool:
    return True


_STRIP = Step("strip", _always, str.strip)
_WHITESPACE = Step("whitespace", _always, lambda text: " ".join(text.split()))


def _folding() -> Callable[[str], str]:
    try:
        from unidecode import unidecode
    except ImportError:
        hint = "pip install Unidecode (its licence is the GPL, so it is not installed for you)"
        raise RecipeError(f"data.clean.profile=nvidia folds to ASCII with Unidecode: {hint}") from None
    return unidecode


def _count_folded(texts: Sequence[str], counts: Counter[str]) -> None:
    counts["characters_seen"] += sum(map(len, texts))
    foreign = [text for text in texts if not text.isascii()]
    lost = sum(len(text) - len(text.encode("ascii", "ignore")) for text in foreign)
    if lost:
        counts["characters_folded"] += lost
