"""Tokenizers: text to ids and back, with the framing that tells documents apart.

A tokenizer lives in a folder that `transformers.AutoTokenizer` loads, plus `tokenizer_card.json`
with what transformers does not know: the framing, and the fingerprint that ties shards and
checkpoints to this very tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .manifest import read_manifest, write_atomic
from .recipe.tokenizer import BpeTokenizerConfig, BytesTokenizerConfig

CARD = "tokenizer_card.json"
_LIBRARY_FILE = "tokenizer.json"


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned little-endian type that holds every id of a vocabulary."""
    if vocab_size <= 2**8:
        return np.dtype("u1")
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class Tokenizer(ABC):
    """Ids for text. `fingerprint` is the sha256 of everything that decides the ids."""

    kind: str
    vocab_size: int
    fingerprint: str
    prefix = ""
    suffix = ""
    end_of_document: str | None = None
    end_id: int | None = None  # the id of `end_of_document`

    @property
    def id_dtype(self) -> np.dtype[Any]:
        """The type ids are stored in."""
        return dtype_for(self.vocab_size)

    @abstractmethod
    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text as a whole document, framing included."""

    @abstractmethod
    def encode_prompt(self, text: str) -> np.ndarray:
        """The ids of the beginning of a document, so that a model goes on from there."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids; special ids vanish, bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def _library(self) -> dict[str, Any]:
        """The content of tokenizer.json."""

    def save(self, folder: Path | str) -> None:
        """Write the tokenizer's folder, the card last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**30,
        }
        if self.end_of_document is not None:
            config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), self.end_of_document)
        card = {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "fingerprint": self.fingerprint,
            "prefix": self.prefix,
            "suffix": self.suffix,
            "end_of_document": self.end_of_document,
        }
        write_atomic(folder / _LIBRARY_FILE, _json(self._library()))
        write_atomic(folder / "tokenizer_config.json", _json(config))
        write_atomic(folder / CARD, _json(card))


class ByteTokenizer(Tokenizer):
    """Id = value of the UTF-8 byte; documents are framed by a prefix and a suffix text."""

    kind = "bytes"
    vocab_size = 256

    def __init__(self, prefix: str, suffix: str) -> None:
        self.prefix, self.suffix = prefix, suffix
        self.fingerprint = _fingerprint(self.kind, prefix, suffix)

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        framed = (f"{self.prefix}{text}{self.suffix}" for text in texts)
        return [np.frombuffer(text.encode(), np.uint8) for text in framed]

    def encode_prompt(self, text: str) -> np.ndarray:
        return np.frombuffer((self.prefix + text).encode(), np.uint8)

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
                "vocab": {symbol: value for value, symbol in enumerate(_byte_symbols())},
                "merges": [],
            },
        }


class BpeTokenizer(Tokenizer):
    """Byte-level BPE; one special id ends every document."""

    kind = "bpe"

    def __init__(self, library_json: str, end_of_document: str) -> None:
        import tokenizers as hf

        self._content = json.loads(library_json)
        self._hf = hf.Tokenizer.from_str(library_json)
        # Text that happens to spell the special token is text, not the end of a document.
        self._hf.encode_special_tokens = True
        self.end_of_document = end_of_document
        self.end_id = self._hf.token_to_id(end_of_document)
        self.vocab_size = self._hf.get_vocab_size()
        self.fingerprint = _fingerprint(self.kind, self._content, end_of_document)

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._hf.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([*e.ids, self.end_id], self.id_dtype) for e in encoded]

    def encode_prompt(self, text: str) -> np.ndarray:
        ids = self._hf.encode(text, add_special_tokens=False).ids
        return np.array([self.end_id, *ids], self.id_dtype)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._hf.decode(np.asarray(ids).tolist(), skip_special_tokens=True)

    def _library(self) -> dict[str, Any]:
        return self._content


def train_tokenizer(
    config: BytesTokenizerConfig | BpeTokenizerConfig, texts: Iterable[str]
) -> Tokenizer:
    """The tokenizer of a recipe; BPE is trained on all of `texts`, which bytes never reads."""
    if isinstance(config, BytesTokenizerConfig):
        return ByteTokenizer(config.prefix, config.suffix)
    import tokenizers as hf

    model = hf.Tokenizer(hf.models.BPE())
    model.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[config.end_of_document],
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return BpeTokenizer(model.to_str(), config.end_of_document)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer saved in `folder`; DataError when it is missing or was altered."""
    card = read_manifest(Path(folder) / CARD)
    tokenizer: Tokenizer
    if card.get("kind") == "bytes":
        tokenizer = ByteTokenizer(card["prefix"], card["suffix"])
    elif card.get("kind") == "bpe":
        content = read_manifest(Path(folder) / _LIBRARY_FILE)
        tokenizer = BpeTokenizer(_json(content), card["end_of_document"])
    else:
        raise DataError(f"{folder}: tokenizer kind {card.get('kind')!r}, expected bytes or bpe")
    if tokenizer.fingerprint != card["fingerprint"]:
        what = f"fingerprint {tokenizer.fingerprint[:12]}, its card says {card['fingerprint'][:12]}"
        raise DataError(f"{folder}: tokenizer files were altered ({what}); run prepare again")
    return tokenizer


def _byte_symbols() -> list[str]:
    """The library's printable symbol of each byte: itself, or the next free one from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def _fingerprint(*content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
