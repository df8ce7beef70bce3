from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import sample_texts, write_jsonl
from documents import documents
from hypothesis import given
from hypothesis import strategies as st

from data_prep.keys import SPLITS, document_keys, mixed, normalised, split_numbers
from data_prep.prepare import prepare
from data_prep.recipe.data import SplitConfig


def splits_of(texts: list[str], config: SplitConfig) -> list[str]:
    keys = document_keys([text.encode() for text in texts])
    return [SPLITS[number] for number in split_numbers(keys, config)]


@given(st.text() | st.text(st.characters(codec="ascii")))
def test_normalised_text_has_no_case_and_no_white_space(text: str) -> None:
    assert normalised(text.encode()).decode() == "".join(text.casefold().split())


@given(st.lists(st.binary(max_size=5)))
def test_equal_texts_have_equal_keys(raws: list[bytes]) -> None:
    keys = document_keys(raws)
    assert (keys.shape, keys.dtype) == ((len(raws), 2), np.dtype(np.uint64))
    assert len({tuple(key) for key in keys.tolist()}) == len(set(raws))
    assert document_keys(raws[::-1])[::-1].tolist() == keys.tolist()


@given(st.lists(st.integers(0, 2**64 - 1), unique=True), st.text(max_size=3))
def test_mixing_is_a_permutation(values: list[int], purpose: str) -> None:
    array = np.array(values, np.uint64)
    found = mixed(array, purpose)
    assert len(set(found.tolist())) == len(values) and array.tolist() == values
    assert not values or found.tolist() != mixed(array, purpose + "!").tolist()


def test_shares_are_met() -> None:
    texts = [f"document {i}" for i in range(20_000)]
    found = Counter(splits_of(texts, SplitConfig(validation=0.2, test=0.1)))
    assert abs(found["validation"] / 20_000 - 0.2) < 0.015
    assert abs(found["test"] / 20_000 - 0.1) < 0.01


def test_salt_moves_documents_and_growing_validation_moves_none_out() -> None:
    texts = [f"document {i}" for i in range(500)]
    small, large = SplitConfig(validation=0.1, test=0.1), SplitConfig(validation=0.3, test=0.1)
    other = SplitConfig(validation=0.1, test=0.1, salt="other")
    assert splits_of(texts, small) != splits_of(texts, other)
    grown = zip(splits_of(texts, small), splits_of(texts, large), strict=True)
    kept = [after for before, after in grown if before == "validation"]
    assert len(kept) > 20 and set(kept) == {"validation"}


@pytest.mark.parametrize("exact", ["true", "false"])
def test_documents_stay_in_their_split_whatever_the_files(recipe: Path, exact: str) -> None:
    texts = sample_texts()

    def prepared(**files: list[str]) -> dict[str, str]:
        for path in Path().glob("corpus*.jsonl"):
            path.unlink()
        for name, held in files.items():
            write_jsonl(Path(f"corpus-{name}.jsonl"), held)
        prepare(recipe, [f"data.duplicates.exact={exact}"])
        return {document.text: document.split for document in documents("prepared")}

    before = prepared(a=texts)
    assert len(before) == len(texts) and len(set(before.values())) == 3
    assert prepared(renamed=texts) == before
    assert prepared(b=texts[200:][::-1], c=texts[:200]) == before
    more = [f"{text} And more." for text in texts]
    grown = prepared(a=more, b=texts)
    assert len(grown) == 2 * len(texts) and before.items() < grown.items()
    assert prepared(a=texts[:150]).items() < before.items()
