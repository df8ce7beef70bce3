from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.shards import HEADER_BYTES, ShardWriter, Split, read_header

FINGERPRINT = hashlib.sha256(b"tokenizer").hexdigest()
Documents = list[tuple[list[int], bool]]


def write(folder: Path, documents: Documents, vocab: int = 300, shard_tokens: int = 7) -> Any:
    """The shards of `documents` and a manifest that lists them."""
    dtype = np.dtype("<u2" if vocab > 256 else "u1")
    writer = ShardWriter(folder, "train", FINGERPRINT, vocab, dtype, shard_tokens)
    for ids, reset in documents:
        writer.add(np.array(ids, dtype), reset)
    shards = writer.close()
    entry = {
        "documents": len(documents),
        "tokens": sum(len(ids) for ids, _ in documents),
        "bytes": 0,
        "characters": 0,
        "shards": shards,
    }
    tokenizer = {"fingerprint": FINGERPRINT, "vocab_size": vocab}
    return {"splits": {"train": entry}, "tokenizer": tokenizer}


ids_list = st.lists(st.integers(0, 255), max_size=12)


@given(
    documents=st.lists(st.tuples(ids_list, st.booleans()), max_size=12),
    vocab=st.sampled_from([256, 300]),
    data=st.data(),
)
def test_round_trip(documents: Documents, vocab: int, data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        split = Split.open(Path(name), "train", write(Path(name), documents, vocab))
        stream = [token for ids, _ in documents for token in ids]
        ends = np.cumsum([len(ids) for ids, _ in documents], dtype=np.int64)
        assert split.read(0, split.tokens).tolist() == stream
        assert split.document_ends.tolist() == ends.tolist()
        start = data.draw(st.integers(0, len(stream)))
        stop = data.draw(st.integers(start, len(stream)))
        assert split.read(start, stop).tolist() == stream[start:stop]
        assert split.resets.tolist() == expected_resets(documents)


def expected_resets(documents: Documents) -> list[int]:
    """The reference: a reset due is paid at the next token that exists."""
    resets, at, due = [], 0, False
    for ids, reset in documents:
        due = due or reset
        if due and ids:
            resets.append(at)
            due = False
        at += len(ids)
    return resets


def test_layout(tmp_path: Path) -> None:
    write(tmp_path, [([1, 2, 299], True), ([], False), ([5, 6], True)])
    raw = (tmp_path / "train-00000.shard").read_bytes()
    assert raw[:8] == b"LMSHARD1"
    fixed = np.frombuffer(raw[8:16], "<u4").tolist() + np.frombuffer(raw[16:48], "<u8").tolist()
    assert fixed == [1, 2, 300, 5, 3, 2]
    assert raw[48:80].hex() == FINGERPRINT
    assert raw[80:112] == hashlib.sha256(raw[HEADER_BYTES:]).digest()
    assert not any(raw[112:HEADER_BYTES])
    ids, rest = raw[HEADER_BYTES : HEADER_BYTES + 10], raw[HEADER_BYTES + 16 :]
    assert np.frombuffer(ids, "<u2").tolist() == [1, 2, 299, 5, 6]
    assert np.frombuffer(rest, "<u8").tolist() == [3, 3, 5, 0, 3]


def test_shards_close_at_document_ends(tmp_path: Path) -> None:
    manifest = write(tmp_path, [([1] * 20, True), ([2] * 3, True), ([3] * 4, True), ([4], True)])
    shards = manifest["splits"]["train"]["shards"]
    assert [(s["path"], s["tokens"], s["documents"]) for s in shards] == [
        ("train-00000.shard", 20, 1), ("train-00001.shard", 7, 2), ("train-00002.shard", 1, 1),
    ]  # fmt: skip
    split = Split.open(tmp_path, "train", manifest)
    assert split.read(19, 28).tolist() == [1, 2, 2, 2, 3, 3, 3, 3, 4]


def test_read_gives_a_copy_and_keeps_its_bounds(tmp_path: Path) -> None:
    split = Split.open(tmp_path, "train", write(tmp_path, [([1, 2, 3], True)]))
    split.read(0, 3)[:] = 9
    assert split.read(0, 3).tolist() == [1, 2, 3] and len(split.read(3, 3)) == 0
    for start, stop in ((-1, 2), (2, 1), (0, 4)):
        with pytest.raises(IndexError):
            split.read(start, stop)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="token id 300 for a vocabulary of 300"):
        write(tmp_path, [([299], True), ([300], True)])


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (0, b"X", "is not a shard"),
        (8, b"\x02", "version 2"),
        (12, b"\x03", "3 bytes an id"),
        (24, b"\x09", "its header implies"),
        (48, b"\x00", "the manifest names"),
        (17, b"\x00", "the manifest names"),
    ],
)
def test_header_mismatches(tmp_path: Path, offset: int, value: bytes, words: str) -> None:
    manifest = write(tmp_path, [([1, 2, 3], True)])
    path = tmp_path / "train-00000.shard"
    raw = bytearray(path.read_bytes())
    raw[offset : offset + 1] = value
    path.write_bytes(raw)
    with pytest.raises(DataError, match=words) as caught:
        Split.open(tmp_path, "train", manifest)
    assert str(path) in str(caught.value)


def test_short_missing_and_unlisted(tmp_path: Path) -> None:
    manifest = write(tmp_path, [([1, 2, 3], True)])
    path = tmp_path / "train-00000.shard"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    with pytest.raises(DataError, match="its header implies"):
        read_header(path)
    path.write_bytes(raw[:100])
    with pytest.raises(DataError, match="is not a shard"):
        read_header(path)
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        read_header(path)
    with pytest.raises(DataError, match="no split 'dev'"):
        Split.open(tmp_path, "dev", manifest)
