"""Disks that are full or cannot be written: one message, exit code 2, and the same command goes on
when there is room."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PREPARE, assert_same, contents, run, sample_texts

import data_prep.prepare as stage
from data_prep.claims import Claim, TaskFolder
from data_prep.errors import RecipeError
from data_prep.shards import Prepared

BPE = "tokenizer={kind: bpe, vocab_size: 300}"
VARIANTS = {
    "shuffled": [BPE, "data.duplicates.near=true"],
    "shuffled by two": [BPE, "data.duplicates.near=true", "--workers", "2"],
    "in source order": ["data.order=source", "data.duplicates.exact=false"],
}

Mount = Callable[[str], None]


@pytest.fixture
def disk(recipe: Path) -> Iterator[Mount]:
    """Sets the options of a file system of its own, mounted at `disk`."""
    folder = recipe.with_name("disk")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root and its capabilities")

    def options(text: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{text}", str(folder)], check=True)

    try:
        yield options
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def prepare(*arguments: str, folder: str = "disk/prepared") -> tuple[int, str]:
    # Options stand before the overrides, as argparse wants them.
    options = [a for a in arguments if a.startswith("--") or a.isdigit()]
    overrides = [a for a in arguments if a not in options]
    return run(*PREPARE, *options, "recipe.yaml", f"data.folder={folder}", *overrides)


def refused(result: tuple[int, str]) -> None:
    code, said = result
    assert code == 2, said
    assert said.count("error: ") == 1 and "Traceback" not in said
    assert "cannot write" in said and "what is done is kept" in said and said.endswith("again\n")


@pytest.fixture
def corpus(recipe: Path) -> None:
    chance = random.Random(0)
    rows = [{"text": f"{text} {chance.random()}"} for text in sample_texts(2000)]
    Path("corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_full_disk(disk: Mount, corpus: None, variant: str) -> None:
    """Room is made little by little, so that every step finds it full."""
    arguments = [*VARIANTS[variant], "data.shard_tokens=40000"]
    assert prepare(*arguments, folder="alone")[0] == 0
    size, codes = 64, []
    while True:
        result = prepare(*arguments)
        codes.append(result[0])
        if result[0] == 0:
            break
        refused(result)
        assert not Path("disk/prepared").exists() and size < 4000
        size = size * 3 // 2 + 8
        disk(f"size={size}k")
    assert len(codes) > 4
    assert_same(contents("disk/prepared"), contents("alone"))
    assert sorted(path.name for path in Path("disk").iterdir()) == ["prepared"]


def test_a_disk_that_cannot_be_written(disk: Mount) -> None:
    disk("size=4m,ro")
    refused(prepare())
    disk("size=4m,rw")
    assert prepare()[0] == 0
    disk("size=4m,ro")
    # What is finished can be used all the same.
    assert prepare() == (0, "disk/prepared: up to date\n")
    assert Prepared.open("disk/prepared", verify=True).manifest["stage"] == "prepare"
    refused(prepare("data.seed=1"))
    assert prepare() == (0, "disk/prepared: up to date\n")


def test_a_place_that_is_no_folder(recipe: Path) -> None:
    Path("taken").write_text("work")
    code, said = prepare(folder="taken")
    assert code == 2 and "nothing was overwritten" in said
    code, said = prepare(folder="taken/prepared")
    assert code == 2 and said.count("error: ") == 1
    Path("taken.tmp").write_text("work")
    code, said = prepare(folder="taken")
    assert code == 2 and said.count("error: ") == 1
    assert Path("taken").read_text() == Path("taken.tmp").read_text() == "work"


def test_a_disk_that_fills_up_in_one_process(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook, say: the process that met the full disk tries again, and goes on."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "x")

    for step in ("encode_task", "write_card"):
        with monkeypatch.context() as patch:
            patch.setattr(stage, step, full)
            with pytest.raises(RecipeError, match="cannot write x .No space left on device"):
                stage.prepare("recipe.yaml")
        for folder in Path("prepared.tmp/work").iterdir():
            names = {path.name.partition(".")[0] for path in folder.glob("*.claim-*")}
            assert [name for name in names if TaskFolder(folder).owner(name)] == []
    stage.prepare("recipe.yaml")
    stage.prepare("recipe.yaml", ["data.folder=alone"])
    assert_same(contents("prepared"), contents("alone"))


@pytest.mark.parametrize("variant", ["shuffled", "in source order"])
def test_what_is_done_is_on_the_disk(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    """When a task is marked as done, a power cut can take nothing of it any more."""
    synced, sync, finish = set(), os.fsync, TaskFolder.finish
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.add(os.fstat(fd).st_ino), sync(fd))[1])

    def checked(phase: TaskFolder, claim: Claim, result: dict[str, Any]) -> bool:
        made = [path for path in Path("prepared.tmp").rglob("*") if path.is_file()]
        made = [path for path in made if ".claim-" not in path.name]
        assert [str(path) for path in made if path.stat().st_ino not in synced] == []
        return finish(phase, claim, result)

    monkeypatch.setattr(TaskFolder, "finish", checked)
    leaks = ["data.leaks.sets={held: {kind: jsonl, path: corpus.jsonl, text_field: text}}"]
    stage.prepare("recipe.yaml", [*VARIANTS[variant], *leaks], workers=1)
    whole = [path for path in Path("prepared").rglob("*") if path.is_file()]
    assert whole and [str(path) for path in whole if path.stat().st_ino not in synced] == []
