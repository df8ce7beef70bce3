"""A small corpus and its recipe, written where the test runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = "the quick brown fox jumps over a lazy dog while naïve readers drink café crème 😀".split()


def sample_texts(count: int = 300) -> list[str]:
    return [" ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(i % 9 + 3)) + f" {i}."
            for i in range(count)]  # fmt: skip


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bytes recipe over one JSON lines file, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "corpus.jsonl", sample_texts())
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data:\n"
        "  folder: prepared\n"
        "  sources: [{kind: jsonl, path: corpus*.jsonl, text_field: text}]\n"
        "  split: {validation: 0.2, test: 0.1}\n"
        "  shard_tokens: 2000\n"
        "  reset_documents: 3\n"
        "tokenizer: {kind: bytes}\n"
    )
    return path


@pytest.fixture
def rewrite_corpus(tmp_path: Path) -> Callable[[list[str]], None]:
    return lambda texts: write_jsonl(tmp_path / "corpus.jsonl", texts)
