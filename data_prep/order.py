"""The order of documents: one seeded permutation per split, whatever order they arrive in.

A document's place is the rank of a hash of the seed and its text. Documents are first dealt to
buckets on disk by the head of that hash, then sorted bucket by bucket, so memory holds one
bucket (a 64th of a split) and not the corpus.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_BUCKETS = 64
_LENGTH = struct.Struct("<Q")


class DocumentOrder:
    """Collects documents in a scratch folder and gives them back permuted."""

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True)
        self._folder, self._seed = folder, seed
        self._files: dict[tuple[str, int], IO[bytes]] = {}

    def add(self, split: str, text: str) -> None:
        """Put a document into its split."""
        raw = text.encode()
        bucket = (split, self._rank(raw)[0] * _BUCKETS // 256)
        if bucket not in self._files:
            self._files[bucket] = open(self._path(*bucket), "wb")
        self._files[bucket].write(_LENGTH.pack(len(raw)) + raw)

    def close(self) -> None:
        """End collecting; `read` may begin."""
        for stream in self._files.values():
            stream.close()

    def read(self, split: str) -> Iterator[str]:
        """The documents of a split in their final order; may be read again."""
        for bucket in range(_BUCKETS):
            if (split, bucket) in self._files:
                raws = list(_records(self._path(split, bucket)))
                raws.sort(key=lambda raw: (self._rank(raw), raw))
                yield from (raw.decode() for raw in raws)

    def _rank(self, raw: bytes) -> bytes:
        return hashlib.blake2b(b"%d\0" % self._seed + raw, digest_size=16).digest()

    def _path(self, split: str, bucket: int) -> Path:
        return self._folder / f"{split}-{bucket:02d}"


def _records(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        while head := stream.read(_LENGTH.size):
            yield stream.read(_LENGTH.unpack(head)[0])
