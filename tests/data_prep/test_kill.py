"""Runs that are killed at any moment: the same command goes on, to the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PREPARE, ROOT, assert_same, contents, run, start

from data_prep.errors import run_main
from data_prep.prepare import prepare

BPE = "tokenizer={kind: bpe, vocab_size: 300}"
DIRECT = ["data.order=source", "data.duplicates.exact=false"]
KILLED = 9
STEPS = ("replace", "link", "unlink", "mkdir", "rmdir")


def die_at(step: int, overrides: list[str]) -> None:
    """Prepare, and die before the so-manieth change of a folder's entries."""
    left = step

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **keys: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(KILLED)
            return change(*arguments, **keys)

        return counting

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    prepare("recipe.yaml", overrides)


@pytest.fixture(scope="module")
def forked() -> Iterator[Callable[..., int | None]]:
    """Calls a function in a process of its own, forked off one that has the modules loaded. There
    is one such server for all tests: it is given back as it was found."""
    server = forkserver._forkserver  # type: ignore[attr-defined]
    before = server._preload_modules
    server._stop()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_kill", "awkward", "gigatoken", "pandas", "tokenizers"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{Path(__file__).parent}")
        forkserver.ensure_running()

    def forked(function: Callable[..., Any], *arguments: Any) -> int | None:
        process = context.Process(target=function, args=arguments)
        process.start()
        process.join(60)
        process.kill()
        return process.exitcode

    yield forked
    server._stop()
    context.set_forkserver_preload(before)


ALL_STEPS = pytest.param(1, marks=pytest.mark.long)


@pytest.mark.parametrize("every", [5, ALL_STEPS])
@pytest.mark.parametrize(
    ("first", "data", "again"),
    [
        (3, [BPE], []),
        (0, [BPE], ["data.seed=1"]),
        (1, DIRECT, []),
        (2, DIRECT, ["data.split.salt=other"]),
    ],
    ids=["shuffled", "shuffled, then another", "in source order", "in source order, then another"],
)
def test_death_at_a_step(
    recipe: Path,
    forked: Callable[..., int | None],
    first: int,
    data: list[str],
    again: list[str],
    every: int,
) -> None:
    """Before a change of a folder: made beside an earlier result, and gone on with the same recipe
    or another."""
    data = [*data, "data.shard_tokens=4000"]
    prepare("recipe.yaml", ["data.folder=old"])
    prepare("recipe.yaml", [*data, *again, "data.folder=alone"])
    expected = contents("alone")
    step, code = first % every, KILLED
    while code == KILLED:
        shutil.copytree("old", "prepared", copy_function=os.link)
        code = forked(die_at, step, data)
        assert code in (KILLED, 0), f"step {step}"
        assert forked(prepare, "recipe.yaml", [*data, *again]) == 0, f"step {step}"
        assert_same(contents("prepared"), expected)
        assert contents("prepared.superseded-1").keys() == contents("old").keys()
        assert not Path("prepared.tmp").exists()
        for path in Path().glob("prepared*"):
            shutil.rmtree(path)
        step += every
    assert step > 50


WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in ("a", "ei", "oo") for c in "lmnrst"]


@pytest.fixture
def corpus(recipe: Path) -> None:
    """A megabyte in a few files, with copies and near copies."""
    chance = random.Random(0)
    Path("corpus.jsonl").unlink()
    for number in range(5):
        rows = []
        for _ in range(300 + 100 * number):
            text = " ".join(chance.choices(WORDS, k=chance.randrange(10, 80)))
            rows += [text] * chance.choice((1, 1, 1, 2)) + [f"{text} more"] * (
                chance.random() < 0.1
            )
        lines = (json.dumps({"text": row, "n": n}) + "\n" for n, row in enumerate(rows))
        Path(f"corpus-{number}.jsonl").write_text("".join(lines))


def done() -> int:
    """The tasks that are done."""
    return len(list(Path("prepared.tmp/work").glob("*/*.done")))


def killed_after(tasks: int, chance: random.Random, *command: str) -> list[psutil.Process]:
    """Start a run and kill it some time after so many tasks are done; returns its workers."""
    process = start(*command)
    while process.poll() is None and done() < tasks:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.08))
    workers = []
    if process.poll() is None:
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    assert process.returncode in (-signal.SIGKILL, 0)
    return workers


def assert_end(workers: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(workers, timeout=10)
    assert [p for p in left if p.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 9))]
)
@pytest.mark.parametrize(
    ("workers", "data"),
    [
        ("1", [BPE, "data.duplicates.near=true"]),
        ("2", [BPE, "data.duplicates.near=true"]),
        ("2", [*DIRECT, "tokenizer={kind: bytes}"]),
    ],
    ids=["one process", "two", "two in source order"],
)
def test_kills_at_random(
    recipe: Path, corpus: None, workers: str, data: list[str], seed: int
) -> None:
    """The parent alone is killed, and started again while its workers may still live."""
    keys = ("data.sources.0.label_field=n", "data.shard_tokens=15000", "data.max_bad_share=0.5")
    command = (*PREPARE, "--workers", workers, "recipe.yaml", *data, *keys)
    code, said = run(*command, "data.folder=alone")
    assert code == 0, said
    chance = random.Random(seed)
    expected = contents("alone")
    inputs, splits = (expected["manifest.json"][name] for name in ("inputs", "splits"))
    shards = sum(len(split["shards"]) for split in splits.values())
    tasks = len(inputs) * 2 if "data.order=source" in data else len(inputs) + shards
    orphans, tries = [], 5
    for number in range(tries):  # each in its own part of the work: a late one may find it done
        first, last = (tasks * part // tries for part in (number, number + 1))
        orphans += killed_after(chance.randint(first, last), chance, *command)
    code, said = run(*command)
    assert code == 0, said
    assert_end(orphans)
    assert (workers == "1") == (orphans == [])
    assert_same(contents("prepared"), expected)
    names = sorted(path.name for path in Path().iterdir())
    assert [name for name in names if not name.startswith("corpus")] == [
        "alone", "prepared", "recipe.yaml"
    ]  # fmt: skip


HEARS_CTRL_C = pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
    reason="started in the background of a shell, which has Ctrl-C ignored",
)


@HEARS_CTRL_C
@pytest.mark.parametrize("after", [0.05, 0.15, 0.25, 0.35])
def test_interrupted_at_once(recipe: Path, corpus: None, after: float) -> None:
    """While the command, and the server of its workers, still import: the server says nothing,
    whatever the command has come to."""
    process = subprocess.Popen(
        [sys.executable, *PREPARE, "--workers", "2", "recipe.yaml"],
        cwd=recipe.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert "forkserver" not in said


def interrupted_at_a_start() -> int:
    """Prepare, with a Ctrl-C as soon as the server has been asked for a worker."""
    ask = forkserver.connect_to_new_process

    def ask_and_interrupt(fds: Any) -> Any:
        asked = ask(fds)
        signal.raise_signal(signal.SIGINT)
        return asked

    forkserver.connect_to_new_process = ask_and_interrupt
    return run_main(lambda _: prepare("recipe.yaml", [], workers=2), [])


@HEARS_CTRL_C
def test_interrupted_while_a_worker_starts(recipe: Path, corpus: None) -> None:
    script = "import sys, test_kill; sys.exit(test_kill.interrupted_at_a_start())"
    code, said = run("-c", script)
    assert (code, said.splitlines()[-1]) == (130, "error: interrupted")
    assert "Error" not in said


@HEARS_CTRL_C
@pytest.mark.parametrize("workers", ["1", "2"])
def test_interrupted_from_the_keyboard(recipe: Path, corpus: None, workers: str) -> None:
    command = (*PREPARE, "--workers", workers, "recipe.yaml", BPE, "data.shard_tokens=6000")
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=recipe.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,  # as a terminal has it: Ctrl-C goes to all of the group
        stderr=subprocess.PIPE,
        text=True,
    )
    while done() < 10:
        assert process.poll() is None
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "error: interrupted\n")
    assert_end(children)
    for folder in ("prepared", "alone"):
        assert run(*command, f"data.folder={folder}")[0] == 0
    assert_same(contents("prepared"), contents("alone"))
