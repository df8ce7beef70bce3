"""Cleaning: a pure function from raw text to the text a model is trained on.

The steps run in a fixed order: tags before entities, so that an escaped `&lt;b&gt;` stays text;
white space last, so that it also closes the gaps the other steps leave.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter

from .recipe.data import CleanConfig

_TAG = re.compile(r"<[a-zA-Z/!][^<>]*>")
# Category Cc without the characters that Unicode counts as white space: those separate words.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")


def clean(text: str, config: CleanConfig, counts: Counter[str] | None = None) -> str | None:
    """The cleaned text, or None when it is shorter than `min_characters`.

    `counts` gains one for each step that changed this document, and `too_short` for a drop.
    """
    counts = Counter() if counts is None else counts
    if config.strip_tags:
        text = _counted("strip_tags", text, _TAG.sub(" ", text), counts)
    if config.unescape_html:
        text = _counted("unescape_html", text, html.unescape(text), counts)
    if config.unicode_nfc:
        text = _counted("unicode_nfc", text, unicodedata.normalize("NFC", text), counts)
    if config.drop_control:
        text = _counted("drop_control", text, _CONTROL.sub("", text), counts)
    if config.collapse_whitespace:
        text = _counted("collapse_whitespace", text, " ".join(text.split()), counts)
    if len(text) < config.min_characters:
        counts["too_short"] += 1
        return None
    return text


def _counted(step: str, before: str, after: str, counts: Counter[str]) -> str:
    if after != before:
        counts[step] += 1
    return after
