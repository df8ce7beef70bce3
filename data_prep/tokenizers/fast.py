"""Faster encoders for BPE, used only where they give the ids of the reference.

`gigatoken` and `tiktoken` are optional. An encoder is proved on texts that tend to differ and on
the first documents it is handed; where one id differs, the next one takes over and says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from .base import to_json
from .byte import byte_symbols
from .library import EncodeBatch

_PROOF_BYTES = 300_000  # of documents: a few hundred, less than 0.1 s of the reference
# gigatoken remembers every word it meets, up to 6 bytes per byte of text without blanks, so it
# starts afresh after so many bytes of text.
_CACHED_BYTES = 100 * 10**6
# What `tokenizers` calls ByteLevel.
_GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TRICKY = (
    "", " ", "  ", " a  b   c ", "a\n\n b\r\n\tc \n", "\u00a0x\u2003\u3000y\u200bz\ufeff",
    "don't I'LL we'Ve 'sun o'clock 's", "1234567890 3.14e-10 ½ ²३٣",
    "\x00\x01\x1b\x7f\x85\ufffd", "日本語のテキスト、漢字とかな。", "中文文本 한국어 ไทย ខ្មែរ",
    "हिन्दी עברית العربية", "cafe\u0301 ǅ ß ﬁ İi", "😀👩\u200d👩\u200d👧🇯🇵👍🏽 ❤\ufe0f", "a" * 300,
    "ab" * 200, "!" * 100 + " ...---", "<0x41>▁▁ ▅ Ġ Ċ",
)  # fmt: skip


class FastEncoder:
    """Calls like the reference; `spelled` are special tokens whose spelling must be tried too."""

    def __init__(
        self, content: dict[str, Any], reference: EncodeBatch, spelled: Sequence[str]
    ) -> None:
        self._content, self._reference = content, reference
        self._tricky = [text.encode() for text in (*_TRICKY, *(f"a{s} {s} {s}b" for s in spelled))]
        self._left = iter(ENCODERS.items())
        self._encode: EncodeBatch | None = None  # chosen when first needed: it costs an import
        self._name = ""
        self._unproven = _PROOF_BYTES

    def __call__(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all documents, without framing, and the length of each in ids."""
        if self._encode is None:
            self._encode = self._next()
        while self._unproven > 0 and self._encode is not self._reference:
            sample = list(_head(documents, self._unproven))
            if self._agrees(self._encode, sample):
                self._unproven -= sum(map(len, sample))
                break
            self._encode = self._next()
        return self._encode(documents)

    def _next(self) -> EncodeBatch:
        """The next encoder that is installed and right about the tricky texts."""
        for name, build in self._left:
            self._name = name
            try:
                encode = build(self._content)
            except ImportError:
                continue
            except Exception as error:  # another library's refusal, whatever its type
                self._complain(f"refuses this tokenizer ({error})")
                continue
            if encode is not None and self._agrees(encode, self._tricky):
                return encode
        return self._reference

    def _agrees(self, encode: EncodeBatch, documents: Sequence[bytes]) -> bool:
        expected = self._reference(documents)
        try:
            found = encode(documents)
        except Exception as error:
            self._complain(f"fails on this tokenizer ({error})")
            return False
        same = all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        if not same:
            self._complain("gives other ids than tokenizers")
        return same

    def _complain(self, what: str) -> None:
        print(f"{self._name} {what}: encoding falls back to a slower way", file=sys.stderr)


def _head(documents: Sequence[bytes], size: int) -> Iterator[bytes]:
    """The first documents, `size` bytes in all; the last one is cut between characters."""
    for document in documents:
        if size <= 0:
            return
        yield document[:size].decode(errors="ignore").encode()
        size -= len(document)


def _gigatoken(content: dict[str, Any]) -> EncodeBatch:
    import awkward
    import gigatoken

    library_json = to_json(content)
    tokenizer = gigatoken.Tokenizer.from_json(library_json)
    left = _CACHED_BYTES

    def encode(documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        nonlocal tokenizer, left
        if not documents:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        if left <= 0:
            tokenizer, left = gigatoken.Tokenizer.from_json(library_json), _CACHED_BYTES
        left -= sum(map(len, documents))
        # parallel=False: one core, like every other encoder here.
        ragged = tokenizer.encode_batch(list(documents), parallel=False)
        flat = awkward.to_numpy(awkward.flatten(ragged))
        return flat, awkward.to_numpy(awkward.num(ragged)).astype(np.int64)

    return encode


def _tiktoken(content: dict[str, Any]) -> EncodeBatch | None:
    """None for a tokenizer that it cannot express."""
    import tiktoken

    split = content["pre_tokenizer"] or {}
    scheme = [split.get(key) for key in ("type", "add_prefix_space", "use_regex")]
    if content["added_tokens"] or content["normalizer"] or scheme != ["ByteLevel", False, True]:
        return None
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    # Only what merges can reach, so that no text becomes a special token.
    reachable = chain(byte_of, ("".join(pair).replace(" ", "") for pair in merges))
    ranks = {bytes(map(byte_of.__getitem__, token)): vocab[token] for token in reachable}
    encoding = tiktoken.Encoding(
        "bpe", pat_str=_GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={}
    )

    def encode(documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        ids = [encoding.encode_ordinary(document.decode()) for document in documents]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.fromiter(chain.from_iterable(ids), np.uint32, int(lengths.sum())), lengths

    return encode


ENCODERS = {"gigatoken": _gigatoken, "tiktoken": _tiktoken}  # the fastest first
