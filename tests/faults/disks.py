"""Faults of the disk under a run. They need root, to mount one."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.faults.driver import assert_same_run, step_of
from tests.faults.scene import CUT, STEPS, WORLD, Scene, finish

_DISK_BYTES = 64 << 20
ON_A_DISK_OF_ITS_OWN = ("full_disk", "read_only")


def full_disk(scene: Scene, run: Path, dice: random.Random) -> None:
    """All but a random rest of a small disk fills up at a random moment."""
    rest = dice.randrange(1 << 16)
    whole = run.rename(run.with_name(f"{run.name}-whole"))
    run.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(run))

    def fill() -> None:
        with (run / "filler").open("wb") as out:
            with suppress(OSError):  # the run was faster
                os.posix_fallocate(out.fileno(), 0, max(1, shutil.disk_usage(run).free - rest))

    try:
        shutil.copytree(whole, run, dirs_exist_ok=True)
        _while_it_runs(scene, run, dice, fill, (run / "filler").unlink, "space")
    finally:
        _umount(run)
    shutil.rmtree(whole)


def read_only(scene: Scene, run: Path, dice: random.Random) -> None:
    """The run's folder, or that of its checkpoints, takes no new files from a moment on."""
    place = dice.choice([run, run / "checkpoints"])

    def lock() -> None:
        _mount("--bind", str(place), str(place))
        _mount("-o", "remount,ro,bind", str(place))

    _while_it_runs(scene, run, dice, lock, lambda: _umount(place), "Read-only file system")


def _while_it_runs(
    scene: Scene, run: Path, dice: random.Random, harm: Callable[[], None],
    mend: Callable[[], None], words: str,
) -> None:  # fmt: skip
    """Harm at a random step, or before the start: the run says `words`, and goes on once mended."""
    step = dice.randrange(CUT - 1, STEPS)
    if step < CUT:
        harm()
    attempt = scene.start(run.name)
    if step >= CUT and attempt.wait_for(lambda: step_of(run) >= step):
        harm()
    codes, said = attempt.end(), attempt.log()
    mend()
    if codes != [0] * WORLD:  # else there was nothing left to be written
        # The other rank may have been in the middle of an exchange.
        told = re.search(rf"^error: .*{words}", said, re.MULTILINE)
        assert told, f"{codes}\n{said}"
    finish(scene, run)
    assert_same_run(run, scene.straight)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True, text=True)


def _umount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def can_mount() -> bool:
    """Whether a small disk can be made here: it takes root, and a kernel that lets it."""
    with tempfile.TemporaryDirectory() as folder:
        found = subprocess.run(
            ["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False
        )
        if found.returncode == 0:
            _umount(Path(folder))
        return found.returncode == 0
