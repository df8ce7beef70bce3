"""Faster encoders give the ids of the reference, or they are not used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from conftest import sample_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.recipe.tokenizer import validate_tokenizer
from data_prep.tokenizers import fast, train_tokenizer
from data_prep.tokenizers.library import EncodeBatch, LibraryTokenizer

DOCUMENTS = [text.encode() for text in [*sample_texts(), "<|endoftext|> 日本語 😀", ""]]
AVAILABLE = dict(fast.ENCODERS)


def fresh() -> LibraryTokenizer:
    config = validate_tokenizer({"kind": "bpe", "vocab_size": 400})
    tokenizer = train_tokenizer(config, sample_texts())
    assert isinstance(tokenizer, LibraryTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def encoders() -> dict[str, tuple[EncodeBatch, LibraryTokenizer]]:
    tokenizer, found = fresh(), {}
    for name, build in AVAILABLE.items():
        pytest.importorskip(name)
        encode = build(tokenizer._library() | {"added_tokens": []})
        assert encode is not None
        found[name] = (encode, tokenizer)
    return found


@pytest.mark.parametrize("name", AVAILABLE)
@settings(deadline=None)
@given(
    texts=st.lists(st.text() | st.text("aé \t\n'st<|>1日😀\u0301\u200d", max_size=60), max_size=5)
)
def test_ids_are_the_reference(
    encoders: dict[str, tuple[EncodeBatch, LibraryTokenizer]], name: str, texts: list[str]
) -> None:
    encode, tokenizer = encoders[name]
    documents = [text.encode() for text in texts]
    for ours, theirs in zip(encode(documents), tokenizer.reference(documents), strict=True):
        assert ours.tolist() == theirs.tolist()


def broken(wrong_from: bytes) -> Any:
    """A builder of an encoder that errs once a document holds `wrong_from`."""

    def build(content: dict[str, Any]) -> EncodeBatch:
        reference = fresh().reference

        def encode(documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
            ids, lengths = reference(documents)
            return ids + any(wrong_from in document for document in documents), lengths

        return encode

    return build


def refusing(content: dict[str, Any]) -> None:
    raise ValueError("unheard of")


def failing(content: dict[str, Any]) -> EncodeBatch:
    return lambda documents: refusing(content)  # type: ignore[return-value, func-returns-value]


def absent(content: dict[str, Any]) -> None:
    raise ImportError


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (broken(b"<|endoftext|>"), "other ids than tokenizers"),
        (broken(b"quick"), "other ids than tokenizers"),
        (refusing, "refuses this tokenizer (unheard of)"),
        (failing, "fails on this tokenizer (unheard of)"),
        (absent, ""),
        (lambda content: None, ""),
    ],
)
def test_the_reference_takes_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], build: Any, complaint: str
) -> None:
    monkeypatch.setattr(fast, "ENCODERS", {"swift": build})
    tokenizer = fresh()
    ids, lengths = tokenizer.encode_utf8(DOCUMENTS)
    expected = [tokenizer.encode_prompt(text.decode()) for text in DOCUMENTS]
    assert lengths.tolist() == [len(row) for row in expected]
    assert ids.tolist() == [i for row in expected for i in (*row[1:], row[0])]
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == bool(complaint) and complaint in "".join(printed)
    tokenizer.encode_utf8(DOCUMENTS)
    assert not capsys.readouterr().err


def test_proof_goes_on_over_calls_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_PROOF_BYTES", 30)
    monkeypatch.setattr(fast, "ENCODERS", {"swift": broken(b"never")})
    tokenizer = fresh()
    tokenizer.encode_utf8([])
    tokenizer.encode_utf8([b"ten bytes."])
    encoder = tokenizer._encode
    assert isinstance(encoder, fast.FastEncoder) and encoder._unproven == 20
    tokenizer.encode_utf8(["日本語".encode() * 9])
    assert encoder._unproven <= 2
    tokenizer.encode_utf8(DOCUMENTS)
    assert encoder._unproven <= 0 and encoder._encode is not encoder._reference


def test_installed_encoders_need_no_fallback(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = fresh()
    tokenizer.encode_utf8(DOCUMENTS)
    assert not capsys.readouterr().err


def test_a_fresh_start_changes_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gigatoken")
    monkeypatch.setattr(fast, "_CACHED_BYTES", 10)
    tokenizer = fresh()
    first, second = tokenizer.encode_utf8(DOCUMENTS)[0], tokenizer.encode_utf8(DOCUMENTS)[0]
    assert first.tolist() == second.tolist()
