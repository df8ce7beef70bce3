from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.shards import HEADER_BYTES, Split, read_header
from tests.shard_files import FINGERPRINT, write_shards

TRAILER_BYTES = 40
ids_list = st.lists(st.integers(0, 255), min_size=1, max_size=12)


@given(documents=st.lists(ids_list, max_size=12), vocab=st.sampled_from([256, 300]), data=st.data())
def test_round_trip(documents: list[list[int]], vocab: int, data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        manifest = write_shards(Path(name), documents, vocab)
        split = Split.open(Path(name), "train", manifest)
        stream = [token for ids in documents for token in ids]
        ends = np.cumsum([len(ids) for ids in documents], dtype=np.int64)
        assert split.read(0, split.tokens).tolist() == stream
        assert split.document_ends.tolist() == ends.tolist()
        start = data.draw(st.integers(0, len(stream)))
        stop = data.draw(st.integers(start, len(stream)))
        assert split.read(start, stop).tolist() == stream[start:stop]


def test_layout(tmp_path: Path) -> None:
    write_shards(tmp_path, [[1, 2, 299], [5, 6]])
    raw = (tmp_path / "train-00000.shard").read_bytes()
    assert raw[:8] == raw[-8:] == b"LMSHARD2"
    assert np.frombuffer(raw[8:16], "<u4").tolist() == [2, 0]
    assert np.frombuffer(raw[16:24], "<u8").tolist() == [300]
    assert raw[24:56].hex() == FINGERPRINT and not any(raw[56:HEADER_BYTES])
    payload = raw[HEADER_BYTES:-TRAILER_BYTES]
    assert np.frombuffer(payload[:10], "<u2").tolist() == [1, 2, 299, 5, 6]
    assert not any(payload[10:16])
    assert np.frombuffer(payload[16:], "<u8").tolist() == [3, 5]
    trailer = raw[-TRAILER_BYTES:]
    assert np.frombuffer(trailer[:16], "<u8").tolist() == [5, 2]
    assert trailer[16:32] == xxhash.xxh3_128_digest(raw[:-TRAILER_BYTES])


def test_a_document_never_straddles_shards(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path, [[1] * 20, [2] * 3, [3] * 4, [4]])
    shards = manifest["splits"]["train"]["shards"]
    assert [(s["path"], s["tokens"], s["documents"]) for s in shards] == [
        ("train-00000.shard", 20, 1), ("train-00001.shard", 7, 2), ("train-00002.shard", 1, 1),
    ]  # fmt: skip
    split = Split.open(tmp_path, "train", manifest)
    assert split.read(19, 28).tolist() == [1, 2, 2, 2, 3, 3, 3, 3, 4]


def test_read_gives_a_copy_and_keeps_its_bounds(tmp_path: Path) -> None:
    split = Split.open(tmp_path, "train", write_shards(tmp_path, [[1, 2, 3]]))
    split.read(0, 3)[:] = 9
    assert split.read(0, 3).tolist() == [1, 2, 3] and len(split.read(3, 3)) == 0
    for start, stop in ((-1, 2), (2, 1), (0, 4)):
        with pytest.raises(IndexError):
            split.read(start, stop)


def test_what_no_shard_can_hold_is_refused_on_writing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="token id 300 for a vocabulary of 300"):
        write_shards(tmp_path, [[299], [300]])
    with pytest.raises(DataError, match="a document without tokens"):
        write_shards(tmp_path, [[299], []])


def test_ids_beyond_the_vocabulary_are_refused_on_reading(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path, [[1, 2, 3, 4]])
    path = tmp_path / "train-00000.shard"
    raw = bytearray(path.read_bytes())
    raw[HEADER_BYTES + 2 : HEADER_BYTES + 4] = (300).to_bytes(2, "little")
    path.write_bytes(raw)
    split = Split.open(tmp_path, "train", manifest)
    assert split.read(2, 4).tolist() == [3, 4]
    with pytest.raises(DataError, match="token id 300 for a vocabulary of 300"):
        split.read(0, 2)
    with pytest.raises(DataError, match="token id 300 for a vocabulary of 300"):
        split.windows(np.array([0, 1]), 2)


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (0, b"X", "expected b'LMSHARD2'"),
        (7, b"1", "a shard of another version"),
        (8, b"\x03", "its trailer implies"),
        (-40, b"\x09", "its trailer implies"),
        (-1, b"9", "has no trailer"),
        (24, b"\x00", "the manifest names"),
        (17, b"\x00", "the manifest names"),
    ],
)
def test_header_mismatches(tmp_path: Path, offset: int, value: bytes, words: str) -> None:
    manifest = write_shards(tmp_path, [[1, 2, 3]])
    path = tmp_path / "train-00000.shard"
    raw = bytearray(path.read_bytes())
    raw[offset] = value[0]
    path.write_bytes(raw)
    with pytest.raises(DataError, match=words) as caught:
        Split.open(tmp_path, "train", manifest)
    assert str(path) in str(caught.value)


def test_short_missing_and_unlisted(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path, [[1, 2, 3]])
    path = tmp_path / "train-00000.shard"
    raw = path.read_bytes()
    for size, words in ((-1, "has no trailer"), (50, "begins"), (0, "begins")):
        path.write_bytes(raw[:size])
        with pytest.raises(DataError, match=words):
            read_header(path)
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        read_header(path)
    with pytest.raises(DataError, match="no split 'dev'"):
        Split.open(tmp_path, "dev", manifest)
