"""Runs that are killed at any moment: the same command goes on, to the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PREPARE, assert_same, contents, finish, run, start

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
def forked() -> Callable[..., int | None]:
    """Calls a function in a process of its own, forked off one that has the modules loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_kill"])

    def forked(function: Callable[..., Any], *arguments: Any) -> int | None:
        process = context.Process(target=function, args=arguments)
        process.start()
        process.join(60)
        process.kill()
        return process.exitcode

    return forked


@pytest.mark.parametrize("again", [[], ["data.seed=1"]], ids=["same", "changed"])
@pytest.mark.parametrize("data", [[BPE], DIRECT], ids=["shuffled", "in source order"])
def test_death_at_every_step(
    recipe: Path, forked: Callable[..., int | None], data: list[str], again: list[str]
) -> None:
    """Before each change of a folder: made anew beside a result of another recipe, and gone on
    with the same recipe or another."""
    data = [*data, "data.shard_tokens=4000"]
    prepare("recipe.yaml", ["data.folder=old"])
    prepare("recipe.yaml", [*data, *again, "data.folder=alone"])
    expected = contents("alone")
    step, code = 0, KILLED
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
        step += 1
    print("STEPS", step); assert step > 50
