from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.clean import clean
from data_prep.recipe.data import CleanConfig, SplitConfig
from data_prep.split import split_of

OFF = dict.fromkeys(
    ("strip_tags", "unescape_html", "unicode_nfc", "drop_control", "collapse_whitespace"), False
)


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("strip_tags", "a<br />b</p><!-- c -->1 < 2 <3", "a b  1 < 2 <3"),
        ("unescape_html", "&lt;b&gt; &amp; &#39;", "<b> & '"),
        ("unicode_nfc", "cafe\u0301", "caf\u00e9"),
        ("drop_control", "a\x00b\x1b\x7fc\td\n\x85", "abc\td\n\x85"),
        ("collapse_whitespace", " a \t\n\u00a0b ", "a b"),
    ],
)
def test_each_step_alone(step: str, before: str, after: str) -> None:
    counts: Counter[str] = Counter()
    config = CleanConfig.model_validate({**OFF, step: True})
    assert clean(before, config, counts) == after
    assert counts == {step: 1}
    assert clean(before, CleanConfig.model_validate(OFF)) == before


def test_order_of_steps() -> None:
    assert clean("&lt;br&gt;x <b>y</b>&nbsp;\x00 z", CleanConfig()) == "<br>x y z"


def test_short_documents_are_dropped_and_counted() -> None:
    counts: Counter[str] = Counter()
    assert clean("<p> </p>", CleanConfig(), counts) is None
    assert clean("ab", CleanConfig(min_characters=3), counts) is None
    assert clean("abc", CleanConfig(min_characters=3), counts) == "abc"
    assert counts["too_short"] == 2


@given(st.text())
def test_whitespace_is_single_and_text_stays_encodable(text: str) -> None:
    cleaned = clean(text, CleanConfig())
    if cleaned is not None:
        cleaned.encode()
        assert cleaned.split(" ") == cleaned.split() and "\0" not in cleaned


def test_shares_are_met() -> None:
    config = SplitConfig(validation=0.2, test=0.1)
    found = Counter(split_of(f"document {i}", config) for i in range(20_000))
    assert abs(found["validation"] / 20_000 - 0.2) < 0.015
    assert abs(found["test"] / 20_000 - 0.1) < 0.01


def test_salt_moves_documents_and_growing_validation_moves_none_out() -> None:
    texts = [f"document {i}" for i in range(500)]
    small = SplitConfig(validation=0.1, test=0.1)
    other = SplitConfig(validation=0.1, test=0.1, salt="other")
    assert [split_of(t, small) for t in texts] != [split_of(t, other) for t in texts]
    large = SplitConfig(validation=0.3, test=0.1)
    kept = [split_of(t, large) for t in texts if split_of(t, small) == "validation"]
    assert set(kept) == {"validation"}
