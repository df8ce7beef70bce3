"""A small corpus and its recipe, written where the test runs."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

ROOT = Path(__file__).parents[2]
PACKS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lambda raw: lzma.compress(raw, preset=0),
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
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


def start(*command: str) -> subprocess.Popen[str]:
    """A Python process that can import data_prep and these tests, its outputs in one pipe."""
    return subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a process, which is given a minute."""
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, output


def run(*command: str) -> tuple[int, str]:
    """Exit code and output of a Python process."""
    return finish(start(*command))


PREPARE = ("-m", "data_prep", "prepare")


def contents(folder: Path | str) -> dict[str, Any]:
    """All that a prepared folder holds, by name: bytes, and the manifest without what depends on
    when it was made."""
    folder = Path(folder)
    found: dict[str, Any] = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    found["manifest.json"] = _timeless(json.loads(found["manifest.json"]))
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if not isinstance(value, dict):
        return value
    times = ("mtime_ns", "seconds", "tokenizer_seconds")
    return {name: _timeless(held) for name, held in value.items() if name not in times}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Both hold the same files, byte for byte; says which differ, not how."""
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
