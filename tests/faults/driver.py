"""Ranks that can be killed at any moment, and what is looked at afterwards.

Every attempt to train forks the ranks anew, as a supervisor would start them; each leaves the exit
code that the command line would.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import torch

from pipeline.run_folder import RunFolder
from pipeline.train.checkpoint import find_checkpoint
from pipeline.train.piece_files import SavedPieces
from tests.distributed.training import plant_in_every_run
from tests.pipeline.tiny import losses, metrics
from tests.ranks import rank_context

LIMIT_S = 300.0
_GRACE_S = 20.0  # for the others to notice that one is gone


class Attempt:
    """The ranks of one start. The loss of the batch at instance `bad_at` is no number."""

    def __init__(
        self, world: int, recipe: Path, overrides: list[str], run: Path, bad_at: int | None = None
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        run.parent.mkdir(parents=True, exist_ok=True)
        self._run = run
        self._log = run.with_name(f"{run.name}.log")  # beside it: the run's disk may be full
        where = (world, port, str(recipe), overrides, str(self._log), bad_at)
        self._ranks = [rank_context().Process(target=_rank, args=(r, *where)) for r in range(world)]
        for process in self._ranks:
            process.start()

    def kill(self, rank: int) -> None:
        pid = self._ranks[rank].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def wait_for(self, moment: Callable[[], bool]) -> bool:
        """Until `moment` comes; False when the ranks have ended before."""
        deadline = monotonic() + LIMIT_S
        while monotonic() < deadline:
            if moment():
                return True
            if not any(process.is_alive() for process in self._ranks):
                return False
            sleep(0.001)
        raise AssertionError(f"the moment never came:\n{self.log()}")

    def end(self) -> list[int]:
        """Exit codes when all have ended; those that wait for a dead one for ever are killed."""
        deadline = monotonic() + LIMIT_S
        while any(process.is_alive() for process in self._ranks):
            if any(process.exitcode for process in self._ranks):
                deadline = min(deadline, monotonic() + _GRACE_S)
            if monotonic() > deadline:
                for process in self._ranks:
                    process.kill()
            sleep(0.01)
        return [int(process.exitcode or 0) for process in self._ranks]

    def log(self) -> str:
        """The end of what the ranks have said."""
        return self._log.read_text()[-20_000:] if self._log.exists() else ""


def _rank(
    rank: int, world: int, port: int, recipe: str, overrides: list[str], log: str,
    bad_at: int | None,
) -> None:  # fmt: skip
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    sys.stdout = sys.stderr = open(log, "a", buffering=1)
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    torch.set_num_threads(1)
    from data_prep.errors import run_main
    from pipeline.recipe import load_recipe
    from pipeline.train import start

    if bad_at is not None:
        plant_in_every_run(bad_at, math.nan)
    try:
        code = run_main(lambda _: start.pretrain(load_recipe(recipe, overrides)), [])
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def run_to_the_end(world: int, recipe: Path, overrides: list[str], run: Path) -> None:
    """An undisturbed run."""
    attempt = Attempt(world, recipe, overrides, run)
    codes = attempt.end()
    assert codes == [0] * world, attempt.log()


def step_of(run: Path) -> int:
    """The applied steps before the one that was begun last; -1 before the first."""
    position = RunFolder(run).read_position()
    return -1 if position is None else position[0]


def saving(run: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((run / "checkpoints").glob("global_step*.tmp"))


def assert_same_run(run: Path, straight: Path) -> None:
    """Losses, instances and weights to the last bit, and no sample twice or missed."""
    assert losses(run) == losses(straight)
    trained = [line["instances"] for line in metrics(run) if "train/loss" in line]
    assert trained == [line["instances"] for line in metrics(straight) if "train/loss" in line]
    assert trained == sorted({*trained})
    ours, theirs = (SavedPieces.open(find_checkpoint(r / "checkpoints")) for r in (run, straight))
    assert ours.shapes == theirs.shapes and ours.numbers == theirs.numbers
    for name, shape in theirs.shapes.items():
        assert {*ours.keys(name)} == {*theirs.keys(name)}
        for key in theirs.keys(name):
            parts = [saved.read(name, key, 0, shape.numel()) for saved in (ours, theirs)]
            assert torch.equal(*parts), f"{key} of {name}"
