"""The `hf` kind: a tokenizer that somebody else trained, from a folder of `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..manifest import read_manifest
from ..recipe.tokenizer import HfTokenizerConfig
from .base import CONFIG_FILE, LIBRARY_CLASS, LIBRARY_FILE, to_json
from .fast import FastEncoder
from .library import LibraryTokenizer

_SPECIALS_FILE = "special_tokens_map.json"
_COPIED = (LIBRARY_FILE, _SPECIALS_FILE, "added_tokens.json", "chat_template.jinja")


class PretrainedTokenizer(LibraryTokenizer):
    """The ids of a tokenizer.json as `AutoTokenizer` gives them without special tokens around.

    So text that spells a special token becomes that token, unlike in the kinds trained here.
    """

    kind = "hf"
    spelled_specials_are_text = False

    def __init__(self, content: dict[str, Any], end_of_document: str) -> None:
        super().__init__(content, end_of_document)
        # Documents are never cut or padded, whatever the file was saved with.
        self._hf.no_truncation()
        self._hf.no_padding()
        self._copied: dict[str, bytes] = {}
        if content["model"].get("type") == "BPE":
            spelled = [token["content"] for token in content.get("added_tokens", [])]
            whole = content | {"truncation": None, "padding": None}
            self._encode = FastEncoder(whole, self.reference, spelled)

    @classmethod
    def read(cls, folder: Path, end_of_document: str) -> PretrainedTokenizer:
        tokenizer = cls(read_manifest(folder / LIBRARY_FILE), end_of_document)
        present = [name for name in _COPIED if (folder / name).is_file()]
        tokenizer._copied = {name: (folder / name).read_bytes() for name in present}
        config = _settings(folder / CONFIG_FILE) | {"tokenizer_class": LIBRARY_CLASS}
        # Python code is not copied; tokenizer.json says it all.
        config.pop("auto_map", None)
        config.setdefault("eos_token", end_of_document)
        tokenizer._copied[CONFIG_FILE] = to_json(config).encode()
        return tokenizer

    def _files(self) -> dict[str, bytes]:
        return self._copied


def open_pretrained(config: HfTokenizerConfig) -> PretrainedTokenizer:
    """The tokenizer in the folder `config.path`.

    RecipeError when there is no tokenizer.json or nothing that ends documents; DataError when
    the files are damaged.
    """
    folder = Path(config.path)
    if not (folder / LIBRARY_FILE).is_file():
        hint = "expected a folder as save_pretrained writes it"
        raise RecipeError(f"tokenizer.path {folder} has no {LIBRARY_FILE}; {hint}")
    end = config.end_of_document or _end_token(folder)
    if end is None:
        what = f"tokenizer.path {folder} names no eos token to end documents with"
        raise RecipeError(f"{what}; set tokenizer.end_of_document to one of its tokens")
    return PretrainedTokenizer.read(folder, end)


def _end_token(folder: Path) -> str | None:
    for name in (CONFIG_FILE, _SPECIALS_FILE):
        token = _settings(folder / name).get("eos_token")
        if token:
            return token["content"] if isinstance(token, dict) else token
    return None


def _settings(path: Path) -> dict[str, Any]:
    return read_manifest(path) if path.is_file() else {}
