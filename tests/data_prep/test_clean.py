from __future__ import annotations

import html
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PREPARE, run
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.clean import clean, clean_texts, holds_control, refuse_folded
from data_prep.errors import DataError, RecipeError
from data_prep.recipe.data import CleanConfig

PROFILES = ["modern", "openai", "nvidia", "none"]
# Pieces that meet: markup, references whole and in parts, white space, controls, combining marks.
PIECES = ["a", "é", "e\u0301", "\u0301", "语", "😀", "<", ">", "<b>", "<br\n/>", "&", "amp;",
          "&lt;", "&amp;", "&#39;", "&#x41", "&nbsp;", "&notit;", "&#0;", "#", ";", " ", "\n",
          "\r\n", "\r", "\t", "\x00", "\x1c", "\x85", "\x9f", "\u2028", "\xa0"]  # fmt: skip
messy = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def config(profile: str = "modern", **keys: object) -> CleanConfig:
    return CleanConfig.model_validate({"profile": profile, **keys})


@pytest.fixture(autouse=True)
def _unidecode(request: pytest.FixtureRequest) -> None:
    if "nvidia" in request.node.name:
        pytest.importorskip("unidecode")


@pytest.mark.parametrize(
    ("profile", "before", "after"),
    [
        ("openai", " a &lt;b&gt; &amp;amp; &#39;\n<br>c\r\n\n", "a <b> &amp; ' <br>c"),
        ("openai", "\x00\u0301e\u0301 é\tf  g", "\x00\u0301e\u0301 é\tf  g"),
        ("nvidia", " a<br />b &lt;b&gt;\n\nc\td\xa0", "a b <b> c d"),
        ("nvidia", "1 <2 and 3> 2", "1 2"),
        ("nvidia", "a <b\nc> d", "a <b c> d"),
        ("nvidia", "café 北京 “x” …", "cafe Bei Jing \"x\" ..."),
        ("nvidia", "&eacute;", "é"),  # references after folding, as its source has it
        ("modern", " <b>&lt;i&gt;</b> \n", " <b><i></b> \n"),
        ("modern", "cafe\u0301\x00\x1b \x7fd\t\x85\u2028", "caf\xe9 d\t\x85\u2028"),
        ("modern", "a\r\nb\rc\n\r\n", "a\nb\nc\n\n"),
        ("none", " <b>&lt;\r\n\x00e\u0301 ", " <b>&lt;\r\n\x00e\u0301 "),
    ],
)  # fmt: skip
def test_profiles(profile: str, before: str, after: str) -> None:
    assert clean(before, config(profile)) == after


def _by_openai(text: str) -> str:
    return html.unescape(text).replace("\n", " ").strip()


def _by_nvidia(text: str) -> str:
    from unidecode import unidecode

    return " ".join(html.unescape(unidecode(re.sub("<.*?>", " ", text))).split())


@pytest.mark.parametrize(("profile", "source"), [("openai", _by_openai), ("nvidia", _by_nvidia)])
@given(text=messy | st.text())
def test_profiles_are_those_of_the_papers(
    profile: str, source: Callable[[str], str], text: str
) -> None:
    assert (clean(text, config(profile)) or "") == source(text)


@given(messy | st.text())
@example("a\x00\u0301")  # a control character that kept two others apart
@example("\r\x00\n")
def test_modern_text(text: str) -> None:
    cleaned = clean(text, config()) or ""
    assert "\r" not in cleaned and unicodedata.is_normalized("NFC", cleaned)
    control = {c for c in cleaned if unicodedata.category(c) == "Cc" and not c.isspace()}
    assert not control
    cleaned.encode()


def test_a_reference_with_more_digits_than_a_number_has() -> None:
    assert clean(f"a &#{'1' * 5000}; b &#x{'f' * 5000}; c", config()) == "a \ufffd b \ufffd c"


def test_control_characters_are_found_at_once() -> None:
    characters = list(map(chr, range(sys.maxunicode + 1)))
    control = {c for c in characters if unicodedata.category(c) == "Cc" and not c.isspace()}
    found = {c for c in characters[:0x3000] if holds_control(f"a\n{c}é")}
    assert found == control and len(control) == 65 - 10
    assert not holds_control("".join(characters[0x3000:]))
    assert not holds_control("") and not holds_control("«\x85»")
    assert holds_control("«\x85»" + "\x80")


def test_steps_that_may_be_added() -> None:
    steps = config(strip_tags=True, collapse_whitespace=True)
    text = "&lt;br&gt;x <b>y</b>&nbsp;\x00 z<!-- c --> 1 < 2 <3\n"
    # Tags go first, so that what is escaped stays.
    assert clean(text, steps) == "<br>x y z 1 < 2 <3"
    assert clean(text, config("none", collapse_whitespace=True)) == " ".join(text.split())


@pytest.mark.parametrize("profile", PROFILES)
@given(texts=st.lists(messy, max_size=6))
def test_texts_do_not_meet(profile: str, texts: list[str]) -> None:
    together, alone = Counter[str](), Counter[str]()
    settings = config(profile, min_characters=2, max_characters=6)
    expected = [clean(text, settings, alone) for text in texts]
    assert list(clean_texts(texts, settings, together)) == expected
    assert together == alone


def test_changes_are_counted_once_a_text() -> None:
    counts = Counter[str]()
    texts = ["&amp;&lt;", "&amp;\x00\x01", "plain", "& plain", "a\r\nb\r\n", "e\u0301"]
    clean_texts(texts, config(), counts)
    assert counts == {"entities": 2, "control": 1, "newlines": 1, "unicode_nfc": 1}


def test_lengths_are_of_cleaned_characters() -> None:
    counts = Counter[str]()
    settings = config("openai", min_characters=2, max_characters=4)
    texts = ["&lt;", "&lt;é", " 😀é  \n", "12345", "1234", "   ", ""]
    assert clean_texts(texts, settings, counts) == [None, "<é", "😀é", None, "1234", None, None]
    assert (counts["too_short"], counts["too_long"]) == (3, 1)
    assert clean("", config("none")) is None


def test_folding_by_nvidia_counts_characters_and_refuses() -> None:
    counts = Counter[str]()
    clean_texts(["é" * 2 + "a" * 98, "<é>b", "plain" * 19 + "&eacute;"], config("nvidia"), counts)
    seen, folded = counts["characters_seen"], counts["characters_folded"]
    assert (seen, folded) == (100 + 2 + 103, 2)
    refuse_folded(counts, config("nvidia"))
    counts["characters_folded"] += 1
    with pytest.raises(DataError, match=r"3 of 205 characters \(1\.46%\) are not ASCII"):
        refuse_folded(counts, config("nvidia"))
    refuse_folded(counts, config("nvidia", max_folded_share=0.02))
    refuse_folded(Counter(), config("nvidia"))


def test_folding_by_nvidia_ends_the_command(recipe: Path) -> None:
    code, output = run(*PREPARE, str(recipe), "data.clean.profile=nvidia")
    assert code == 3 and "would lose text" in output and "Traceback" not in output
    code, output = run(*PREPARE, str(recipe), "data.clean={profile: nvidia, max_folded_share: 0.9}")
    assert code == 0, output


def test_folding_needs_unidecode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unidecode", None)
    with pytest.raises(RecipeError, match="pip install Unidecode"):
        clean("a", config("nvidia"))
