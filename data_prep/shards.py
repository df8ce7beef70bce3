"""Token shards: the one place that knows the bytes of the format.

A shard is a 64-byte header, token ids, padding to 8 bytes, document ends and reset offsets
(uint64 each, counted in tokens from the start of the shard) and a 48-byte trailer, all
little-endian. Documents never straddle shards. `docs/data-format.md` describes the same for other
programs.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.lib.stride_tricks import sliding_window_view

from .errors import DataError
from .manifest import FileRecord, HashedFile, read_manifest
from .tokenizers import Tokenizer, load_tokenizer

MAGIC = b"LMSHARD2"
HEADER_BYTES = 64
_HEADER = struct.Struct("<8sII Q32s8x")
_TRAILER = struct.Struct("<QQQ16s8s")
_HASH_BELOW_BYTES = 2**30  # up to here a full check costs seconds, so it is always made
_DTYPES: dict[int, np.dtype[Any]] = {n: np.dtype(f"<u{n}") for n in (1, 2, 4)}
_EXPECTED_MANIFEST = "expected 'prepare', format 2: run prepare again"


class Header(NamedTuple):
    """What stands at both ends of a shard. What is known only at the end stands there, so that a
    shard is written, and hashed, from front to back."""

    itemsize: int
    vocab_size: int
    tokenizer_fingerprint: bytes
    tokens: int
    documents: int
    resets: int
    payload_xxh3: bytes  # xxh3-128 of all between the two ends

    @property
    def ends_at(self) -> int:
        """Where document ends begin, in bytes; the trailer follows them and the resets."""
        return HEADER_BYTES + -(-self.tokens * self.itemsize // 8) * 8


class ShardWriter:
    """Writes one shard piece by piece, so that memory holds a piece and not the shard."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self._path, self._tokenizer = path, tokenizer
        self._dtype = tokenizer.id_dtype.newbyteorder("<")
        self._file = HashedFile(path)
        fingerprint = bytes.fromhex(tokenizer.fingerprint)
        fixed = (self._dtype.itemsize, 0, tokenizer.vocab_size, fingerprint)
        self._file.write(_HEADER.pack(MAGIC, *fixed))
        self._checksum = xxhash.xxh3_128()
        self._tokens = 0
        self._lengths: list[np.ndarray] = []

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents: their ids one after another, and the length of each in ids.

        DataError when an id is not below the vocabulary's size.
        """
        vocab_size = self._tokenizer.vocab_size
        if np.iinfo(ids.dtype).max >= vocab_size and len(ids) and int(ids.max()) >= vocab_size:
            what = f"token id {int(ids.max())} for a vocabulary of {vocab_size}"
            raise DataError(f"{self._path.name}: {what}; tokenizer and recipe disagree")
        self._write(np.ascontiguousarray(ids, self._dtype))
        self._tokens += len(ids)
        self._lengths.append(lengths)

    def close(self, reset_documents: int) -> dict[str, Any]:
        """Write the index and put the shard in place. A recurrent state is reset before every
        `reset_documents`-th document, counted from the first; 0 never.

        Returns the shard's FileRecord, relative to its folder, with tokens, documents and resets.
        """
        lengths = np.concatenate([np.empty(0, np.int64), *self._lengths])
        ends = np.cumsum(lengths)
        starts = (ends - lengths)[::reset_documents] if reset_documents else ends[:0]
        starts = starts[starts < self._tokens]
        # An empty document has no token to reset before: the next one takes the reset over.
        resets = starts[np.diff(starts, prepend=-1) > 0]
        padding = -self._tokens * self._dtype.itemsize % 8
        for piece in (np.zeros(padding, np.uint8), ends.astype("<u8"), resets.astype("<u8")):
            self._write(piece)
        sizes = (self._tokens, len(ends), len(resets))
        self._file.write(_TRAILER.pack(*sizes, self._checksum.digest(), MAGIC))
        record = self._file.close(self._path.parent)
        return record.as_json() | dict(zip(("tokens", "documents", "resets"), sizes, strict=True))

    def _write(self, piece: np.ndarray) -> None:
        data = memoryview(piece.view(np.uint8).data)
        self._checksum.update(data)
        self._file.write(data)


def read_header(path: Path) -> Header:
    """A shard's header and trailer; DataError when the file is not a whole shard."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(HEADER_BYTES)
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TRAILER.size))
            tail = stream.read()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; run prepare again or restore it") from None
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
        hint = "a shard of another version, or none; run prepare again"
        raise DataError(f"{path} begins {head[:8]!r}, expected {MAGIC!r}: {hint}")
    if not tail.endswith(MAGIC) or len(tail) < _TRAILER.size:
        raise DataError(f"{path} has no trailer; the shard was cut short or altered")
    _, itemsize, _, vocab_size, fingerprint = _HEADER.unpack(head)
    header = Header(itemsize, vocab_size, fingerprint, *_TRAILER.unpack(tail)[:4])
    expected = header.ends_at + 8 * (header.documents + header.resets) + _TRAILER.size
    if itemsize not in _DTYPES or size != expected:
        found = f"{size} bytes, its trailer implies {expected}"
        raise DataError(f"{path}: {found}; the shard was cut short or altered")
    return header


class Split:
    """One split as a single stream of tokens, memory-mapped from its shards."""

    def __init__(self, name: str, entry: dict[str, Any], vocab_size: int) -> None:
        self.name, self.vocab_size = name, vocab_size
        self.documents: int = entry["documents"]
        self.bytes: int = entry["bytes"]  # of cleaned text as UTF-8, without framing
        self.characters: int = entry["characters"]
        self.dtype: np.dtype[Any] = np.dtype("u1")
        self._ids: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []
        self._resets: list[np.ndarray] = []
        self._starts = np.zeros(1, np.int64)  # of each shard in the stream, and its end

    @classmethod
    def open(cls, folder: Path, name: str, manifest: dict[str, Any]) -> Split:
        """Map the shards that the manifest lists; DataError when one disagrees with it."""
        if name not in manifest["splits"]:
            raise DataError(f"{folder}: no split {name!r}; there are {list(manifest['splits'])}")
        entry, tokenizer = manifest["splits"][name], manifest["tokenizer"]
        split = cls(name, entry, tokenizer["vocab_size"])
        for shard in entry["shards"]:
            split._map(folder / shard["path"], tokenizer["fingerprint"])
        split._starts = np.array([0, *accumulate(map(len, split._ids))], np.int64)
        if split.tokens != entry["tokens"]:
            what = f"{split.tokens} tokens, its manifest says {entry['tokens']}"
            raise DataError(f"{folder}, split {name}: {what}; run prepare again")
        return split

    def _map(self, path: Path, fingerprint: str) -> None:
        header = read_header(path)
        found = header.tokenizer_fingerprint.hex()
        if (found, header.vocab_size) != (fingerprint, self.vocab_size):
            wanted = f"the manifest names {fingerprint[:12]} of {self.vocab_size}"
            found = f"tokenizer {found[:12]} of {header.vocab_size} ids"
            raise DataError(f"{path}: written with {found}, {wanted}; run prepare again")
        self.dtype = _DTYPES[header.itemsize]
        raw = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        ids = raw[HEADER_BYTES : HEADER_BYTES + header.tokens * header.itemsize]
        offsets = raw[header.ends_at : len(raw) - _TRAILER.size].view("<u8")
        self._ids.append(ids.view(self.dtype))
        self._ends.append(offsets[: header.documents])
        self._resets.append(offsets[header.documents :])

    @property
    def tokens(self) -> int:
        """Length of the stream."""
        return int(self._starts[-1])

    @cached_property
    def document_ends(self) -> np.ndarray:
        """(documents,) int64: the offset after each document's last token; all in memory."""
        return self._shifted(self._ends)

    @cached_property
    def resets(self) -> np.ndarray:
        """(resets,) int64: the offsets of the tokens before which a state is zeroed; all in
        memory."""
        return self._shifted(self._resets)

    def _shifted(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Offsets within shards as offsets within the split."""
        moved = [p.astype(np.int64) + s for p, s in zip(parts, self._starts, strict=False)]
        return np.concatenate([np.empty(0, np.int64), *moved])

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of the ids from `start` to before `stop`; IndexError outside the split."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start}:{stop} of split {self.name} of {self.tokens}")
        out, at = np.empty(stop - start, self.dtype), start
        while at < stop:
            shard = int(np.searchsorted(self._starts, at, "right")) - 1
            base = int(self._starts[shard])
            until = min(stop, base + len(self._ids[shard]))
            out[at - start : until - start] = self._ids[shard][at - base : until - base]
            at = until
        return self._checked(out)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """(len(starts), length) ids from each offset on; the stream is a circle, so a window that
        passes the end goes on at the start."""
        shards = np.searchsorted(self._starts, starts, "right") - 1
        inside = starts + length <= self._starts[shards + 1]
        out = np.empty((len(starts), length), self.dtype)
        for shard in np.unique(shards[inside]).tolist():
            rows = np.flatnonzero(inside & (shards == shard))
            views = sliding_window_view(self._ids[shard], length)
            out[rows] = views[starts[rows] - self._starts[shard]]
        for row in np.flatnonzero(~inside).tolist():
            start = int(starts[row])
            stop = min(start + length, self.tokens)
            out[row, : stop - start] = self.read(start, stop)
            out[row, stop - start :] = self.read(0, start + length - stop)
        return self._checked(out)

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        """The ids; DataError when one is outside the vocabulary, which no model could look up."""
        if np.iinfo(ids.dtype).max >= self.vocab_size and ids.size:
            if (largest := int(ids.max())) >= self.vocab_size:
                what = f"token id {largest} for a vocabulary of {self.vocab_size}"
                raise DataError(f"split {self.name}: {what}; the shard was altered: prepare again")
        return ids


class Prepared:
    """A finished prepared folder; `fingerprint` is a sha256 over the hashes of all shards."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.tokenizer_fingerprint: str = manifest["tokenizer"]["fingerprint"]
        self.vocab_size: int = manifest["tokenizer"]["vocab_size"]
        shards = [s for split in manifest["splits"].values() for s in split["shards"]]
        listing = "".join(f"{s['path']} {s['xxh3']}\n" for s in shards)
        self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()

    @classmethod
    def open(cls, folder: Path | str, verify: bool | None = None) -> Prepared:
        """Open a prepared folder and check every file its manifest lists.

        `verify` hashes all content, False trusts size and modification time; None hashes when
        there is less than 1 GiB. DataError when anything is missing or altered.
        """
        folder = Path(folder)
        if not (folder / "manifest.json").is_file():
            hint = "no manifest.json; run `python -m data_prep prepare RECIPE`"
            raise DataError(f"{folder} holds no prepared data: {hint}")
        manifest = read_manifest(folder / "manifest.json")
        if manifest.get("stage") != "prepare" or manifest.get("format") != 2:
            found = f"stage {manifest.get('stage')!r}, format {manifest.get('format')!r}"
            raise DataError(f"{folder}: manifest of {found}; {_EXPECTED_MANIFEST}")
        records = [FileRecord.from_json(entry) for entry in manifest["outputs"]]
        if verify is None:
            verify = sum(record.size for record in records) < _HASH_BELOW_BYTES
        for record in records:
            if problem := record.problem(folder, verify):
                raise DataError(f"{folder}: {problem}; restore the file or run prepare again")
        return cls(folder, manifest)

    def split(self, name: str) -> Split:
        """The split `train`, `validation` or `test`."""
        return Split.open(self.folder, name, self.manifest)

    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer; DataError when it is not the one that made the shards."""
        tokenizer = load_tokenizer(self.folder / self.manifest["tokenizer"]["folder"])
        if tokenizer.fingerprint != self.tokenizer_fingerprint:
            found = f"tokenizer {tokenizer.fingerprint[:12]}, shards of"
            wanted = f"{self.tokenizer_fingerprint[:12]}; restore it or run prepare again"
            raise DataError(f"{self.folder}: {found} {wanted}")
        return tokenizer
