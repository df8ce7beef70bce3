"""`Tokenizer`: what every kind offers, and the folder it is saved in."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..manifest import write_atomic

CARD = "tokenizer_card.json"
LIBRARY_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
LIBRARY_CLASS = "PreTrainedTokenizerFast"  # has `transformers` take tokenizer.json as it is


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned little-endian type that holds every id of a vocabulary."""
    if vocab_size <= 2**8:
        return np.dtype("u1")
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class Tokenizer(ABC):
    """Ids for text. `fingerprint` is the sha256 of everything that decides the ids."""

    kind: str
    vocab_size: int  # one more than the largest id
    fingerprint: str
    prefix = ""
    suffix = ""
    end_of_document: str | None = None
    end_id: int | None = None  # the id of `end_of_document`
    unknown_id: int | None = None  # the id of text outside the vocabulary, where there is one

    @property
    def id_dtype(self) -> np.dtype[Any]:
        """The type ids are stored in."""
        return dtype_for(self.vocab_size)

    @abstractmethod
    def encode_utf8(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Whole documents, given as UTF-8, as ids with framing.

        Returns the ids of all documents one after the other (`id_dtype`) and the length of each
        document in ids (int64). UnicodeDecodeError may be raised for bytes that are not UTF-8.
        """

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text as a whole document, framing included."""
        ids, lengths = self.encode_utf8([text.encode() for text in texts])
        ends = np.cumsum(lengths)
        return [ids[end - n : end] for end, n in zip(ends, lengths, strict=True)]

    @abstractmethod
    def encode_prompt(self, text: str) -> np.ndarray:
        """The ids of the beginning of a document, so that a model goes on from there."""

    @abstractmethod
    def token_ends(self, text: str) -> np.ndarray:
        """Up to which character of `text` each of its tokens reaches, (n,) int64; the frame of
        `encode_prompt` aside. Bytes in place of characters that are not in a vocabulary may all
        reach to the end of their run."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids; special ids vanish, bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def _library(self) -> dict[str, Any]:
        """The content of tokenizer.json."""

    def _config(self) -> dict[str, Any]:
        """The content of tokenizer_config.json."""
        config: dict[str, Any] = {
            "tokenizer_class": LIBRARY_CLASS,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**30,
        }
        if self.end_of_document is not None:
            config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), self.end_of_document)
        return config

    def _files(self) -> dict[str, bytes]:
        """The files that `transformers` reads, by name."""
        content = {LIBRARY_FILE: self._library(), CONFIG_FILE: self._config()}
        return {name: to_json(value).encode() for name, value in content.items()}

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer's folder, the card last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        card = {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "fingerprint": self.fingerprint,
            "prefix": self.prefix,
            "suffix": self.suffix,
            "end_of_document": self.end_of_document,
        }
        for name, data in self._files().items():
            write_atomic(folder / name, data)
        write_atomic(folder / CARD, to_json(card))


def fingerprint_of(*content: Any) -> str:
    """The sha256, in hex, of plain values; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def to_json(value: Any) -> str:
    """Indented JSON, as every file of a tokenizer's folder holds it."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
