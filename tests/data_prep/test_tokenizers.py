"""What holds for every kind of tokenizer: framing, folders, parity with `transformers`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sample_texts
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.errors import DataError, RecipeError
from data_prep.recipe.tokenizer import validate_tokenizer
from data_prep.tokenizers import (
    Tokenizer,
    dtype_for,
    load_tokenizer,
    round_trip_report,
    train_tokenizer,
)

TRICKY = [
    "hello  world",
    " naïve café 😀👩‍👩‍👧 ",
    "\x00\t\n ctrl\r\n",
    "日本語のテキスト、テスト。 and русский",
    "don't 12345 ▁ <0x41>",
    "",
    "   ",
]
RECIPES: dict[str, dict[str, Any]] = {
    "bytes": {"kind": "bytes"},
    "bpe": {"kind": "bpe", "vocab_size": 400},
    "unigram": {"kind": "unigram", "vocab_size": 600},
    "word": {"kind": "word", "vocab_size": 500, "min_count": 1},
}
TEXTS = [*sample_texts(), "日本語の本を読む。テキスト\n\tend  of\n"]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One tokenizer of each kind; `hf` is the folder of the bpe one."""
    made = {k: train_tokenizer(validate_tokenizer(r), TEXTS) for k, r in RECIPES.items()}
    folder = tmp_path_factory.mktemp("hf")
    made["bpe"].save(folder)
    recipe = validate_tokenizer({"kind": "hf", "path": str(folder)})
    return made | {"hf": train_tokenizer(recipe, [])}


ALL = [*RECIPES, "hf"]
LOSSLESS = [kind for kind in ALL if kind != "word"]


@pytest.mark.parametrize("kind", ALL)
@settings(deadline=None)  # the first call of a tokenizer imports an encoder
@given(texts=st.lists(st.text(), max_size=4))
def test_documents_are_framed_and_joined(
    kinds: dict[str, Tokenizer], kind: str, texts: list[str]
) -> None:
    tokenizer = kinds[kind]
    # Alone among the kinds, `hf` reads a special token where text spells one, as its owner does.
    assume(kind != "hf" or not any("<|endoftext|>" in text for text in texts))
    ids, lengths = tokenizer.encode_utf8([text.encode() for text in texts])
    assert (ids.dtype, lengths.dtype) == (tokenizer.id_dtype, np.int64)
    assert lengths.sum() == len(ids) and len(lengths) == len(texts)
    rows = tokenizer.encode_documents(texts)
    assert b"".join(row.tobytes() for row in rows) == ids.tobytes()
    for text, row, length in zip(texts, rows, lengths, strict=True):
        assert len(row) == length
        if tokenizer.end_id is None:
            assert row.tobytes() == f"\n {text} ".encode()
            assert tokenizer.encode_prompt(text).tobytes() == f"\n {text}".encode()
        else:
            # The end of the document is its last id and, whatever the text spells, no other.
            assert (row == tokenizer.end_id).sum() == 1 and row[-1] == tokenizer.end_id
            assert tokenizer.encode_prompt(text).tolist() == [row[-1], *row[:-1]]


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(deadline=None)
@given(text=st.text() | st.text("a \t\n▁<>0xF😀日'1"))
def test_decoding_gives_the_text_back(kinds: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = kinds[kind]
    ids = tokenizer.encode_documents([text])[0]
    assert tokenizer.decode(ids) == f"{tokenizer.prefix}{text}{tokenizer.suffix}"
    assert round_trip_report(tokenizer, [text])["exact_round_trips"] == 1


@pytest.mark.parametrize("kind", ALL)
@settings(deadline=None)
@given(text=st.text("a \t\n▁<>0xF😀日'1é"))
def test_tokens_end_where_the_text_so_far_ends(
    kinds: dict[str, Tokenizer], kind: str, text: str
) -> None:
    tokenizer = kinds[kind]
    ids = tokenizer.encode_prompt(text)[len(tokenizer.encode_prompt("")) :]
    ends = tokenizer.token_ends(text)
    assert len(ends) == len(ids) and (np.diff(ends) >= 0).all()
    assert not len(ids) or 0 <= ends[0] and ends[-1] <= len(text)
    for place in range(1, len(ids) + 1) if kind in LOSSLESS else ():
        so_far = tokenizer.decode(ids[:place])
        if "\ufffd" not in so_far:  # else the token ends within a character
            reached = text[: ends[place - 1]]
            # unigram spells a run of characters that it lacks as one piece, in bytes
            assert reached.startswith(so_far) if kind == "unigram" else reached == so_far


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
def test_text_that_spells_the_special_token_stays_text(
    kinds: dict[str, Tokenizer], kind: str
) -> None:
    ids = kinds[kind].encode_documents(["a <|endoftext|> b"])[0]
    assert (ids == kinds[kind].end_id).sum() == 1
    if kind != "word":
        assert kinds[kind].decode(ids) == "a <|endoftext|> b"


@pytest.mark.parametrize("kind", LOSSLESS)
def test_bytes_that_are_not_utf8_are_replaced(kinds: dict[str, Tokenizer], kind: str) -> None:
    start = len(kinds[kind].encode_prompt(""))
    ids = kinds[kind].encode_prompt("🜁")[start:]  # bytes everywhere, being in no sample
    assert set(kinds[kind].decode(ids[:1])) == {"\ufffd"}


@pytest.mark.parametrize("kind", ALL)
def test_folder_serves_us_and_transformers(
    tmp_path: Path, kinds: dict[str, Tokenizer], kind: str
) -> None:
    from transformers import AutoTokenizer

    tokenizer = kinds[kind]
    tokenizer.save(tmp_path)
    loaded, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.kind, loaded.fingerprint) == (kind, tokenizer.fingerprint)
    assert len(theirs) == loaded.vocab_size == tokenizer.vocab_size
    skip = len(tokenizer.encode_prompt(""))
    for text in [*TRICKY, *TEXTS[-20:]]:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == loaded.encode_prompt(text)[skip:].tolist()
        assert theirs.decode(ids) == (text if kind != "word" else loaded.decode(ids))
    assert theirs.eos_token == (None if kind == "bytes" else "<|endoftext|>")
    assert theirs.eos_token_id == loaded.end_id


@pytest.mark.parametrize("kind", RECIPES)
def test_training_is_deterministic(kinds: dict[str, Tokenizer], kind: str) -> None:
    # In another process: hashes, and with them the order of sets, are seeded anew.
    program = (
        "import json, sys\n"
        "from data_prep.recipe.tokenizer import validate_tokenizer\n"
        "from data_prep.tokenizers import train_tokenizer\n"
        "recipe, texts = json.load(sys.stdin)\n"
        "print(train_tokenizer(validate_tokenizer(recipe), iter(texts)).fingerprint)\n"
    )
    sent = json.dumps([RECIPES[kind], TEXTS])
    run = subprocess.run(
        [sys.executable, "-c", program], input=sent, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == kinds[kind].fingerprint


def test_fingerprints_of_old_folders_hold() -> None:
    assert train_tokenizer(validate_tokenizer({"kind": "bytes"}), []).fingerprint.startswith(
        "20e53eee4d89"
    )
    bpe = train_tokenizer(validate_tokenizer({"kind": "bpe", "vocab_size": 400}), sample_texts())
    assert bpe.fingerprint.startswith("923fdc9ddfa6") and bpe.vocab_size == 400


def test_fingerprint_covers_the_framing() -> None:
    configs = [{"kind": "bytes"}, {"kind": "bytes", "prefix": ""}, {"kind": "bytes", "suffix": ""}]
    found = {train_tokenizer(validate_tokenizer(c), []).fingerprint for c in configs}
    assert len(found) == 3


@pytest.mark.parametrize(
    ("kind", "key"),
    [("bpe", "merges"), ("unigram", "vocab"), ("word", "unk_token"), ("hf", "merges")],
)
def test_altered_folders_are_refused(
    tmp_path: Path, kinds: dict[str, Tokenizer], kind: str, key: str
) -> None:
    with pytest.raises(DataError, match="missing"):
        load_tokenizer(tmp_path)
    for name, altered in (("tokenizer.json", key), ("tokenizer_card.json", "fingerprint")):
        kinds[kind].save(tmp_path)
        content = json.loads((tmp_path / name).read_text())
        inner = content["model"] if name == "tokenizer.json" else content
        inner[altered] = inner[altered][:-1]
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(DataError, match="altered"):
            load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(DataError, match="not a tokenizer.*altered"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_card.json").write_text('{"kind": "words"}')
    with pytest.raises(DataError, match="'words', expected one of bytes, bpe, unigram, word, hf"):
        load_tokenizer(tmp_path)


def test_id_types() -> None:
    found = [dtype_for(n).itemsize for n in (256, 257, 65536, 65537)]
    assert found == [1, 2, 2, 4]


def test_report_counts(kinds: dict[str, Tokenizer]) -> None:
    report = round_trip_report(kinds["bytes"], ["ab", "日"])
    assert report == {
        "documents": 2,
        "bytes": 5,
        "tokens": 11,
        "bytes_per_token": 5 / 11,
        "unknown_rate": 0.0,
        "exact_round_trips": 1.0,
    }
    report = round_trip_report(kinds["word"], ["the quick brown fox", "the zebra"])
    assert (report["tokens"], report["unknown_rate"]) == (8, 1 / 8)
    assert report["exact_round_trips"] == 0.5
    assert round_trip_report(kinds["bpe"], [])["exact_round_trips"] == 1


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"kind": "unigram", "character_coverage": 0.5}, "character_coverage"),
        ({"kind": "word", "min_count": 0}, "min_count"),
        ({"kind": "hf"}, "path: missing"),
        ({"kind": "bpe", "end_of_document": "<>"}, "end_of_document"),
    ],
)
def test_wrong_recipes_are_refused(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        validate_tokenizer(recipe)
