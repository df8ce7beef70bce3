from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import sample_texts
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.recipe.tokenizer import validate_tokenizer
from data_prep.tokenizers import Tokenizer, dtype_for, load_tokenizer, train_tokenizer

TRICKY = [
    "hello  world",
    "naïve café 😀👩‍👩‍👧",
    "\x00\t\n ctrl",
    "日本語 and русский",
    "don't 12345",
    "",
]


def byte_tokenizer() -> Tokenizer:
    return train_tokenizer(validate_tokenizer({"kind": "bytes"}), [])


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    config = validate_tokenizer({"kind": "bpe", "vocab_size": 400})
    return train_tokenizer(config, sample_texts())


@given(st.lists(st.text(), max_size=4))
def test_bytes_round_trip(texts: list[str]) -> None:
    tokenizer = byte_tokenizer()
    for text, ids in zip(texts, tokenizer.encode_documents(texts), strict=True):
        assert ids.tobytes() == f"\n {text} ".encode()
        assert tokenizer.decode(ids) == f"\n {text} "
        assert tokenizer.encode_prompt(text).tobytes() == f"\n {text}".encode()


@given(texts=st.lists(st.text(), max_size=4))
def test_bpe_round_trip(bpe: Tokenizer, texts: list[str]) -> None:
    for text, ids in zip(texts, bpe.encode_documents(texts), strict=True):
        assert bpe.decode(ids) == text
        # The end of the document is its last id and, whatever the text spells, no other.
        assert ids.dtype == np.uint16 and (ids == ids[-1]).sum() == 1
        assert bpe.encode_prompt(text).tolist() == [ids[-1], *ids[:-1]]


def test_text_that_spells_the_special_token_stays_text(bpe: Tokenizer) -> None:
    ids = bpe.encode_documents(["a <|endoftext|> b"])[0]
    assert bpe.decode(ids) == "a <|endoftext|> b" and (ids == ids[-1]).sum() == 1


def test_bytes_that_are_not_utf8_are_replaced(bpe: Tokenizer) -> None:
    assert byte_tokenizer().decode([0xFF, 0x41]) == "\ufffdA"
    cut = bpe.encode_documents(["日"])[0][:1]
    assert bpe.decode(cut) == "\ufffd"


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_folder_serves_us_and_transformers(tmp_path: Path, bpe: Tokenizer, kind: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = bpe if kind == "bpe" else byte_tokenizer()
    tokenizer.save(tmp_path)
    loaded, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.kind, loaded.fingerprint) == (kind, tokenizer.fingerprint)
    assert len(theirs) == loaded.vocab_size
    skip = len(tokenizer.encode_prompt(""))
    for text in TRICKY:
        ids = theirs(text)["input_ids"]
        assert ids == loaded.encode_prompt(text)[skip:].tolist()
        assert theirs.decode(ids) == text
    assert theirs.eos_token == ("<|endoftext|>" if kind == "bpe" else None)


def test_training_is_deterministic(bpe: Tokenizer) -> None:
    config = validate_tokenizer({"kind": "bpe", "vocab_size": 400})
    assert train_tokenizer(config, iter(sample_texts())).fingerprint == bpe.fingerprint
    assert bpe.vocab_size == 400


def test_fingerprint_covers_the_framing() -> None:
    configs = [{"kind": "bytes"}, {"kind": "bytes", "prefix": ""}, {"kind": "bytes", "suffix": ""}]
    found = {train_tokenizer(validate_tokenizer(c), []).fingerprint for c in configs}
    assert len(found) == 3


def test_altered_folders_are_refused(tmp_path: Path, bpe: Tokenizer) -> None:
    with pytest.raises(DataError, match="missing"):
        load_tokenizer(tmp_path)
    bpe.save(tmp_path)
    for name, key in (("tokenizer.json", "merges"), ("tokenizer_card.json", "fingerprint")):
        content = json.loads((tmp_path / name).read_text())
        inner = content["model"] if name == "tokenizer.json" else content
        inner[key] = inner[key][:-1]
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(DataError, match="altered"):
            load_tokenizer(tmp_path)
        bpe.save(tmp_path)
    (tmp_path / "tokenizer_card.json").write_text('{"kind": "words"}')
    with pytest.raises(DataError, match="'words', expected bytes or bpe"):
        load_tokenizer(tmp_path)


def test_id_types() -> None:
    found = [dtype_for(n).itemsize for n in (256, 257, 65536, 65537)]
    assert found == [1, 2, 2, 4]
