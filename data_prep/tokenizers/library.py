"""Tokenizers that are a tokenizer.json: the `tokenizers` library gives the ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..manifest import read_manifest
from .base import LIBRARY_FILE, Tokenizer, fingerprint_of

# Documents as UTF-8 to the ids of all of them, without framing, and the length of each.
EncodeBatch = Callable[[Sequence[bytes]], tuple[np.ndarray, np.ndarray]]


class LibraryTokenizer(Tokenizer):
    """`content` is a tokenizer.json; the one special id `end_of_document` ends every document.

    DataError when the content is not a tokenizer that knows `end_of_document`.
    """

    # Text that happens to spell a special token is text, not the end of a document.
    spelled_specials_are_text = True
    end_id: int

    def __init__(self, content: dict[str, Any], end_of_document: str) -> None:
        import tokenizers as hf

        try:
            self._hf = hf.Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
        except Exception as error:  # the library raises no narrower type
            hint = "the file was altered, or needs another version of tokenizers"
            raise DataError(f"{LIBRARY_FILE} is not a tokenizer ({error}): {hint}") from None
        self._hf.encode_special_tokens = self.spelled_specials_are_text
        self._content = content
        self.end_of_document = end_of_document
        end_id = self._hf.token_to_id(end_of_document)
        if end_id is None:
            what = f"{LIBRARY_FILE} has no token {end_of_document!r}, which ends documents"
            raise DataError(f"{what}; name one it has, or make it again")
        self.end_id = end_id
        # Ids may have gaps, and added tokens may lie beyond the model's own vocabulary.
        self.vocab_size = 1 + max(self._hf.get_vocab(with_added_tokens=True).values())
        self.unknown_id = self._find_unknown()
        self.fingerprint = fingerprint_of(self.kind, content, end_of_document)
        self._encode: EncodeBatch = self.reference

    @classmethod
    def read(cls, folder: Path, end_of_document: str) -> LibraryTokenizer:
        """The tokenizer whose tokenizer.json is in `folder`; DataError when there is none."""
        return cls(read_manifest(folder / LIBRARY_FILE), end_of_document)

    def _find_unknown(self) -> int | None:
        model = self._content["model"]
        if model.get("byte_fallback"):
            return None  # such a model spells what it does not know
        if model.get("unk_id") is not None:
            return model["unk_id"]
        unknown = model.get("unk_token")
        return None if unknown is None else self._hf.token_to_id(unknown)

    def reference(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The ids by the library itself, on one core: the measure of every faster way."""
        # One by one, because the library's batches start threads, and cores belong to workers.
        encode = self._hf.encode
        ids = [encode(text.decode(), add_special_tokens=False).ids for text in documents]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), self.id_dtype, int(lengths.sum()))
        return flat, lengths

    def encode_utf8(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        flat, lengths = self._encode(documents)
        ids = flat.astype(self.id_dtype, copy=False)
        return np.insert(ids, np.cumsum(lengths), self.end_id), lengths + 1

    def encode_prompt(self, text: str) -> np.ndarray:
        ids = self._hf.encode(text, add_special_tokens=False).ids
        return np.array([self.end_id, *ids], self.id_dtype)

    def token_ends(self, text: str) -> np.ndarray:
        offsets = self._hf.encode(text, add_special_tokens=False).offsets
        return np.array([end for _, end in offsets], np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._hf.decode(np.asarray(ids).tolist(), skip_special_tokens=True)

    def _library(self) -> dict[str, Any]:
        return self._content
