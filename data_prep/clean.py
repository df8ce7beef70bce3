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

import numpy as np

from .errors import DataError, RecipeError
from .recipe.data import CleanConfig

_TAG = re.compile(r"<[a-zA-Z/!][^<>]*>")
# What html.unescape takes for a character reference.
_CHARREF = re.compile(r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)")
_KEPT_REFERENCES = 10_000
_ANY_TAG = re.compile(r"<.*?>")  # as process_str of Puri et al. has it: never across lines
# Category Cc without the characters that Unicode counts as white space: those separate words.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")


class Step(NamedTuple):
    """A named change of a block of texts, which gives back as they are those it does not change."""

    name: str
    change: Callable[[list[str]], list[str]]


def clean(text: str, config: CleanConfig, counts: Counter[str] | None = None) -> str | None:
    """The cleaned text, or None when it is dropped for its length; see `clean_texts`."""
    return clean_texts([text], config, Counter() if counts is None else counts)[0]


def clean_texts(
    texts: Sequence[str], config: CleanConfig, counts: Counter[str]
) -> Sequence[str | None]:
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
        current = step.change(before)
        if current != before:  # of lists, quick: most texts are the same objects
            counts[step.name] += sum(map(operator.ne, before, current))
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
    texts: list[str], config: CleanConfig, counts: Counter[str]
) -> Sequence[str | None]:
    low, high = config.min_characters, config.max_characters
    lengths = list(map(len, texts))
    if low <= min(lengths, default=low) and max(lengths, default=high) <= high:
        return texts
    counts["too_short"] += sum(length < low for length in lengths)
    counts["too_long"] += sum(length > high for length in lengths)
    return [
        text if low <= length <= high else None for text, length in zip(texts, lengths, strict=True)
    ]


def _steps(config: CleanConfig) -> list[Step]:
    if config.profile == "openai":
        return [_ENTITIES, Step("newlines", _newlines_to_spaces), _STRIP]
    if config.profile == "nvidia":
        return [Step("tags", _any_tags), Step("fold_ascii", _folding()), _ENTITIES, _WHITESPACE]
    modern = [
        _ENTITIES,
        Step("control", _without_control),
        Step("newlines", _unix_newlines),
        Step("unicode_nfc", _nfc),  # after what may have stood between a letter and its accent
    ]
    # Tags before entities, so that an escaped &lt;b&gt; stays text; white space last, so that it
    # also closes the gaps the other steps leave.
    return (
        [Step("tags", _tags)] * config.strip_tags
        + modern * (config.profile == "modern")
        + [_WHITESPACE] * config.collapse_whitespace
    )


# Each change stands in a comprehension behind its own test: a call for every text would cost more
# than most changes.


def _entities(texts: list[str]) -> list[str]:
    return [_unescaped_text(t) if "&" in t else t for t in texts]


def _unescaped_text(text: str) -> str:
    # The quotation mark, by far the most frequent, first: no name of a reference holds one, so
    # the others are found as before.
    text = text.replace("&quot;", '"')
    return _CHARREF.sub(_unescaped, text) if "&" in text else text


def _newlines_to_spaces(texts: list[str]) -> list[str]:
    return [t.replace("\n", " ") if "\n" in t else t for t in texts]


def _unix_newlines(texts: list[str]) -> list[str]:
    return [t.replace("\r\n", "\n").replace("\r", "\n") if "\r" in t else t for t in texts]


def _tags(texts: list[str]) -> list[str]:
    return [_TAG.sub(" ", t) if "<" in t else t for t in texts]


def _any_tags(texts: list[str]) -> list[str]:
    return [_ANY_TAG.sub(" ", t) if "<" in t else t for t in texts]


def _nfc(texts: list[str]) -> list[str]:
    return [t if t.isascii() else unicodedata.normalize("NFC", t) for t in texts]


def _without_control(texts: list[str]) -> list[str]:
    if not holds_control("".join(texts)):
        return texts
    return [_CONTROL.sub("", t) if _CONTROL.search(t) else t for t in texts]


def holds_control(text: str) -> bool:
    """Whether the control step would change a text: ten times as fast as the search for a
    character, which looks at one after the other."""
    encoded = text.encode("utf-8", "surrogatepass")
    code = np.frombuffer(encoded, np.uint8)
    low = code[code < 32]  # few: most are newlines
    if ((low < 9) | ((low > 13) & (low < 28))).any() or (code == 127).any():
        return True
    if b"\xc2" not in encoded:
        return False
    after = code[1:][code[:-1] == 0xC2]  # the second bytes of U+0080 to U+00BF
    return bool(((after < 0xA0) & (after != 0x85)).any())


def _single_spaces(texts: list[str]) -> list[str]:
    return [" ".join(t.split()) for t in texts]


class _Unescaped(dict[str, str]):
    """Character references with what they stand for; the few that a corpus uses come often."""

    def __missing__(self, reference: str) -> str:
        try:
            text = html.unescape(reference)
        except ValueError:  # more digits than an integer is read from
            text = "\ufffd"  # as for every number that is no character
        if len(self) < _KEPT_REFERENCES:
            self[reference] = text
        return text


_REFERENCES = _Unescaped()


def _unescaped(match: re.Match[str]) -> str:
    return _REFERENCES[match[0]]


_ENTITIES = Step("entities", _entities)
_STRIP = Step("strip", lambda texts: list(map(str.strip, texts)))
_WHITESPACE = Step("whitespace", _single_spaces)


def _folding() -> Callable[[list[str]], list[str]]:
    try:
        from unidecode import unidecode
    except ImportError:
        what = "data.clean.profile=nvidia folds to ASCII with Unidecode, which is not installed"
        hint = "pip install Unidecode (under the GPL, so it does not come with the requirements)"
        raise RecipeError(f"{what}: {hint}") from None
    return lambda texts: [t if t.isascii() else unidecode(t) for t in texts]


def _count_folded(texts: Sequence[str], counts: Counter[str]) -> None:
    counts["characters_seen"] += sum(map(len, texts))
    foreign = [text for text in texts if not text.isascii()]
    lost = sum(len(text) - len(text.encode("ascii", "ignore")) for text in foreign)
    if lost:
        counts["characters_folded"] += lost
