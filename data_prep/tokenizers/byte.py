"""The `bytes` kind: an id is the value of a UTF-8 byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Tokenizer, fingerprint_of


class ByteTokenizer(Tokenizer):
    """Id = value of the UTF-8 byte; documents are framed by a prefix and a suffix text."""

    kind = "bytes"
    vocab_size = 256

    def __init__(self, prefix: str, suffix: str) -> None:
        self.prefix, self.suffix = prefix, suffix
        self._before, self._after = prefix.encode(), suffix.encode()
        self.fingerprint = fingerprint_of(self.kind, prefix, suffix)

    def encode_utf8(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        # A seam before, between and after the documents makes one join of all; what sticks out
        # at both ends is cut off.
        seam = self._after + self._before
        ids = np.frombuffer(seam.join([b"", *documents, b""]), np.uint8)
        lengths = np.fromiter(map(len, documents), np.int64, len(documents)) + len(seam)
        return ids[len(self._after) : len(ids) - len(self._before)], lengths

    def encode_prompt(self, text: str) -> np.ndarray:
        return np.frombuffer((self.prefix + text).encode(), np.uint8)

    def token_ends(self, text: str) -> np.ndarray:
        sizes = [len(character.encode()) for character in text]
        return np.repeat(np.arange(1, len(text) + 1), sizes)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return np.asarray(ids).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def _library(self) -> dict[str, Any]:
        # The library's byte-level scheme shows each byte as one printable character; a BPE
        # model without merges whose vocabulary numbers those by byte value is the identity.
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        }
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {symbol: value for value, symbol in enumerate(byte_symbols())},
                "merges": [],
            },
        }


def byte_symbols() -> list[str]:
    """The library's printable symbol of each byte: itself, or the next free one from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]
