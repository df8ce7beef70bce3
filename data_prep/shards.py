"""Token shards: the one place that knows the bytes of the format.

A shard is a 64-byte header, token ids, padding to 8 bytes, document ends (uint64 each, counted in
tokens from the start of the shard) and a 40-byte trailer, all little-endian. Documents never
straddle shards. `docs/data-format.md` describes the same for other
programs.
"""

from __future__ import annotations

import hashlib
import os
import struct
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .errors import DataError
from .manifest import FileRecord, HashedFile, inside, read_manifest
from .tokenizers import Tokenizer, load_tokenizer

MAGIC = b"LMSHARD2"
HEADER_BYTES = 64
_HEADER = struct.Struct("<8sII Q32s8x")
_TRAILER = struct.Struct("<QQ16s8s")
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
    xxh3: bytes  # xxh3-128 of all before the trailer

    @property
    def ends_at(self) -> int:
        """Where document ends begin, in bytes; the trailer follows them."""
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
        self._tokens = 0
        self._lengths: list[np.ndarray] = []

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents: their ids one after another, and the length of each in ids.

        DataError when an id is not below the vocabulary's size, or a document has no token.
        """
        vocab_size = self._tokenizer.vocab_size
        if np.iinfo(ids.dtype).max >= vocab_size and len(ids) and int(ids.max()) >= vocab_size:
            what = f"token id {int(ids.max())} for a vocabulary of {vocab_size}"
            raise DataError(f"{self._path.name}: {what}; tokenizer and recipe disagree")
        if len(lengths) and int(lengths.min()) < 1:
            what = "a document without tokens, which no place in the stream could stand for"
            raise DataError(f"{self._path.name}: {what}; give it a prefix, suffix or end")
        self._file.write(_bytes(np.ascontiguousarray(ids, self._dtype)))
        self._tokens += len(ids)
        self._lengths.append(lengths)

    def close(self) -> dict[str, Any]:
        """Write the index and put the shard in place.

        Returns the shard's FileRecord, relative to its folder, with tokens and documents.
        """
        ends = np.cumsum(np.concatenate([np.empty(0, np.int64), *self._lengths]))
        self._file.write(bytes(-self._tokens * self._dtype.itemsize % 8))
        self._file.write(_bytes(ends.astype("<u8")))
        trailer = _TRAILER.pack(self._tokens, len(ends), self._file.digest(), MAGIC)
        self._file.write(trailer)
        record = self._file.close(self._path.parent)
        return record.as_json() | {"tokens": self._tokens, "documents": len(ends)}


def _bytes(values: np.ndarray) -> memoryview:
    return memoryview(values.view(np.uint8).data)


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
    header = Header(itemsize, vocab_size, fingerprint, *_TRAILER.unpack(tail)[:3])
    expected = header.ends_at + 8 * header.documents + _TRAILER.size
    if itemsize not in _DTYPES or size != expected:
        found = f"{size} bytes, its trailer implies {expected}"
        raise DataError(f"{path}: {found}; the shard was cut short or altered")
    return header


class Split:
    """One split as a single stream of tokens, memory-mapped from its shards.

    A recurrent state is reset before every `reset_documents`-th document of the stream, counted
    from the first; never with 0.
    """

    def __init__(self, name: str, entry: dict[str, Any], vocab_size: int, resets: int) -> None:
        self.name, self.vocab_size, self.reset_documents = name, vocab_size, resets
        self.documents: int = entry["documents"]
        self.bytes: int = entry["bytes"]  # of cleaned text as UTF-8, without framing
        self.characters: int = entry["characters"]
        self.dtype: np.dtype[Any] = np.dtype("u1")
        self._ids: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []
        # Of each shard in the stream, and the end of the last: tokens and documents before it.
        self._starts = np.zeros(1, np.int64)
        self._documents_before = np.zeros(1, np.int64)
        self._made_views: dict[tuple[int, int], np.ndarray] = {}

    @classmethod
    def open(cls, folder: Path, name: str, manifest: dict[str, Any]) -> Split:
        """Map the shards that the manifest lists; DataError when one disagrees with it."""
        if name not in manifest["splits"]:
            raise DataError(f"{folder}: no split {name!r}; there are {list(manifest['splits'])}")
        entry, tokenizer = manifest["splits"][name], manifest["tokenizer"]
        split = cls(name, entry, tokenizer["vocab_size"], manifest["reset_documents"])
        for shard in entry["shards"]:
            split._map(folder / shard["path"], tokenizer["fingerprint"])
        split._starts = np.array([0, *accumulate(map(len, split._ids))], np.int64)
        split._documents_before = np.array([0, *accumulate(map(len, split._ends))], np.int64)
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
        self._ids.append(ids.view(self.dtype))
        self._ends.append(raw[header.ends_at : len(raw) - _TRAILER.size].view("<u8"))

    @property
    def tokens(self) -> int:
        """Length of the stream."""
        return int(self._starts[-1])

    @property
    def document_ends(self) -> np.ndarray:
        """(documents,) int64: the offset after each document's last token; all in memory."""
        shifted = zip(self._ends, self._starts, strict=False)
        ends = [ends.astype(np.int64) + start for ends, start in shifted]
        return np.concatenate([np.empty(0, np.int64), *ends])

    def resets(self, starts: np.ndarray, length: int) -> np.ndarray:
        """(len(starts), length) bool: True where a state is reset before a token of the windows
        from each offset on. The stream is a circle, and its first token always is a reset."""
        mask = np.zeros((len(starts), length), bool)
        rows, columns = np.arange(len(starts)), np.zeros(len(starts), np.int64)
        at = np.asarray(starts, np.int64)
        while len(rows):
            mask[rows[at == 0], columns[at == 0]] = True
            shards = np.searchsorted(self._starts, at, "right") - 1
            stops = np.minimum(at + length - columns, self._starts[shards + 1])
            if self.reset_documents:
                for shard in set(shards.tolist()):
                    mine = shards == shard
                    found, places = self._reset_documents(shard, at[mine], stops[mine])
                    mask[rows[mine][found], columns[mine][found] + places] = True
            columns = columns + stops - at
            going_on = columns < length
            at, rows, columns = stops[going_on] % self.tokens, rows[going_on], columns[going_on]
        return mask

    def _reset_documents(
        self, shard: int, starts: np.ndarray, stops: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ranges [start, stop) of a shard in which documents with a reset begin, one entry a
        document, and the offset of its first token in the range."""
        ends, base = self._ends[shard], self._starts[shard]
        # Document i begins where i - 1 ends, and the first at 0.
        first = np.searchsorted(ends, (starts - base).astype(np.uint64), "left") + 1
        first[starts == base] = 0
        last = np.searchsorted(ends, (stops - base).astype(np.uint64), "left") + 1
        counts = np.maximum(last - first, 0)
        ranges = np.repeat(np.arange(len(starts)), counts)
        documents = np.arange(len(ranges)) - np.repeat(np.cumsum(counts) - counts, counts)
        documents += first[ranges]
        due = (documents + self._documents_before[shard]) % self.reset_documents == 0
        ranges, documents = ranges[due], documents[due]
        begins = np.where(documents > 0, ends[documents - 1].astype(np.int64), 0)
        return ranges, begins + base - starts[ranges]

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
        first = self._starts[shards]
        for shard in set(shards[inside].tolist()):
            rows = np.flatnonzero(inside & (shards == shard))
            out[rows] = self._views(shard, length)[starts[rows] - first[rows]]
        for row in np.flatnonzero(~inside).tolist():
            start = int(starts[row])
            stop = min(start + length, self.tokens)
            out[row, : stop - start] = self.read(start, stop)
            out[row, stop - start :] = self.read(0, start + length - stop)
        return self._checked(out)

    def _views(self, shard: int, length: int) -> np.ndarray:
        """(tokens - length + 1, length): every window of a shard, without a copy. Making the view
        costs as much as reading a window, so it is kept."""
        if (shard, length) not in self._made_views:
            self._made_views[shard, length] = sliding_window_view(self._ids[shard], length)
        return self._made_views[shard, length]

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
        shards = [s["path"] for split in manifest["splits"].values() for s in split["shards"]]
        tokenizer = manifest["tokenizer"]["folder"]
        for name in (*(record.path for record in records), *shards, tokenizer):
            inside(folder, name)
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
