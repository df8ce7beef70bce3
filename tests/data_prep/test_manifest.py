from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_prep import manifest as m
from data_prep.errors import DataError


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished stage that read `in.txt` and wrote `out/result`; returns its manifest."""
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("input")
    Path("out").mkdir()
    Path("out/result").write_text("output")
    records = [m.FileRecord.of("in.txt")], [m.FileRecord.of("out/result", Path("out"))]
    m.write_manifest("out/manifest.json", m.stage_manifest("s", "hash", *records, counts={"n": 1}))
    return Path("out/manifest.json")


def shift_time(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 5_000_000_000))


def test_current_until_something_changes(stage: Path) -> None:
    inputs = [Path("in.txt")]
    assert m.stage_is_current(stage, "hash", inputs) is None
    assert m.stage_is_current(stage, "other", inputs) == "recipe changed"
    assert m.stage_is_current(Path("none.json"), "hash", inputs) == "never ran"
    assert m.stage_is_current(stage, "hash", [*inputs, Path("b")]) == "input b is new"
    assert m.stage_is_current(stage, "hash", []) == "input in.txt is no longer read"
    Path("out/result").unlink()
    assert m.stage_is_current(stage, "hash", inputs) == "output changed: result is missing"


def test_time_alone_does_not_matter_but_content_does(stage: Path) -> None:
    shift_time(Path("in.txt"))
    assert m.stage_is_current(stage, "hash", [Path("in.txt")]) is None
    Path("in.txt").write_text("INPUT")
    shift_time(Path("in.txt"))
    reason = m.stage_is_current(stage, "hash", [Path("in.txt")])
    assert reason == "input changed: in.txt: sha256 differs"


def test_size_and_time_are_trusted_unless_verifying(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("aaaa")
    record = m.FileRecord.of(path, tmp_path)
    path.write_text("bbbb")
    os.utime(path, ns=(0, record.mtime_ns))
    assert record.problem(tmp_path) is None
    assert record.problem(tmp_path, verify=True) == "f: sha256 differs"
    path.write_text("bbb")
    assert record.problem(tmp_path) == "f: 3 bytes, 4 were recorded"


def test_unreadable_manifests(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    with pytest.raises(DataError, match="missing"):
        m.read_manifest(path)
    for text, words in (("{", "not JSON"), ("[1]", "expected a JSON object")):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            m.read_manifest(path)
    assert "expected a JSON object" in (m.stage_is_current(path, "h", []) or "")


def test_write_atomic_leaves_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    m.write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        m.write_atomic(path, "new")
    assert path.read_text() == "old"


def test_recipe_hash_ignores_key_order_only() -> None:
    assert m.recipe_hash({"a": 1, "b": 2}) == m.recipe_hash({"b": 2, "a": 1})
    assert m.recipe_hash({"a": 1}) != m.recipe_hash({"a": 2})
    assert m.recipe_hash({"a": 1}, {}) != m.recipe_hash({"a": 1})


def test_versions_of_what_is_not_installed() -> None:
    found = m.versions("numpy", "no-such-distribution")
    assert found["numpy"] and found["no-such-distribution"] is None
