"""Hangs and launchers that die, with real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.clock import Clock
from pipeline.environment import free_port
from pipeline.train.launcher import Launchers
from pipeline.train.stop import STOP, StopRequest
from pipeline.train.watchdog import Watchdog, read_heart
from tests.pipeline.tiny import write_recipe
from tests.ranks import rank_context

ROOT = Path(__file__).parents[2]


def rank_that_may_stand_still(
    rank: int, world: int, port: int, recipe: str, errors: str, fault: str
) -> None:
    """`pretrain` as a launcher would start it; the last rank stands still in its fourth step."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    os.dup2(os.open(f"{errors}{rank}", os.O_CREAT | os.O_WRONLY), 2)
    import torch

    from pipeline.recipe import load_recipe
    from pipeline.train.run import TrainingRun
    from pipeline.train.start import pretrain

    torch.set_num_threads(1)
    next_batch = TrainingRun.next_batch

    def faulty(run: TrainingRun) -> object:
        if rank == world - 1 and run.clock.applied == 3:
            if fault == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                time.sleep(600)
        return next_batch(run)

    TrainingRun.next_batch = faulty  # type: ignore[method-assign, assignment]
    pretrain(load_recipe(recipe))
    os._exit(0)  # a run that ends well is a failure of the test: its exit code is not 1


@pytest.mark.parametrize("fault", ["stopped", pytest.param("stuck", marks=pytest.mark.long)])
def test_a_rank_that_stands_still_ends_the_others_and_is_named(tmp_path: Path, fault: str) -> None:
    recipe = str(write_recipe(tmp_path, "transformer", watch__hang_minutes=0.05))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        rank_context().Process(
            target=rank_that_may_stand_still,
            args=(rank, 2, port, recipe, str(tmp_path / "errors"), fault),
        )
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    try:
        ranks[0].join(timeout=240)
        said = (tmp_path / "errors0").read_text()
        assert ranks[0].exitcode == 1, said
        if fault == "stopped":
            assert psutil.Process(ranks[1].pid).status() == psutil.STATUS_STOPPED
            assert f"(process {ranks[1].pid}) is silent since" in said
    finally:
        for process in ranks:
            process.kill()
            process.join()
    logs = tmp_path / "runs/transformer/logs"
    told = "\n".join(path.read_text() for path in logs.glob("hang-rank*.txt"))
    assert "nothing has moved for" in told and "at step 3, instance 24" in told
    assert "most recent call first" in told  # the stacks
    if fault == "stopped":
        assert "rank 1 on" in told and "Traceback" not in said
        assert said.splitlines()[-1].startswith("error: rank 0 on")
        status = json.loads((tmp_path / "runs/transformer/status.json").read_text())
        assert status["state"] == "crashed" and "nothing has moved" in status["reason"]
    else:  # it lives, but is a few beats behind; either of the two may be the first to leave
        assert "rank 1 on" in told and "is behind" in told
        assert "in faulty" in told or not (logs / "hang-rank1.txt").exists()


def in_a_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True,
        timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


HANGING = """
import sys, time
from pathlib import Path
from pipeline.clock import Clock
from pipeline.train.launcher import Launchers
from pipeline.train.stop import StopRequest
from pipeline.train.watchdog import Watchdog
clock = Clock()
watchdog = Watchdog(Path(sys.argv[1]), clock, 0.5)
stop = StopRequest(Path("no such file"), None)
with watchdog.watching(Launchers(), stop, lambda reason: print(reason)):
    for beats in range(8):
        watchdog.beat("beating")
        time.sleep(0.2)  # together more than the limit
        clock.iteration += 1
    print("alive", flush=True)
    time.sleep(100)
"""


def test_a_run_that_moves_lives_and_one_that_hangs_leaves(tmp_path: Path) -> None:
    done = in_a_process(HANGING, str(tmp_path / "logs"))
    assert done.returncode == 1
    assert done.stdout.startswith("alive\n") and "while beating; look at the stacks" in done.stdout
    assert "most recent call first" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: rank 0 on")


def test_a_folder_that_does_not_answer_is_no_way_to_hang(tmp_path: Path) -> None:
    never = HANGING.replace("from pathlib", "import pipeline.train.watchdog as w\nfrom pathlib")
    never = never.replace("clock = Clock()", "clock = Clock(); w._TO_READ_HEARTS_S = 0.5; "
                          "w.read_heart = lambda *a: time.sleep(100)")  # fmt: skip
    done = in_a_process(never, str(tmp_path / "logs"))
    assert done.returncode == 1 and "does not answer either" in done.stderr.splitlines()[-1]


def test_a_heart_tells_where_its_rank_is_and_ends_with_it(tmp_path: Path) -> None:
    clock, stop = Clock(4, 32, 3), StopRequest(tmp_path / "STOP", None)
    watchdog = Watchdog(tmp_path / "logs", clock, limit_s=5)
    watchdog.beat("in micro-batch 1 of 2")
    file = tmp_path / "logs/heart-rank0.json"
    with watchdog.watching(Launchers(), stop, lambda reason: None):
        while not file.exists():
            time.sleep(0.05)
        heart = read_heart(tmp_path / "logs", 0)
        assert (heart.pid, heart.beats, heart.doing) == (os.getpid(), 1, "in micro-batch 1 of 2")
        assert heart.age_s is not None and heart.age_s > -1
        assert json.loads(file.read_text())["instances"] == 32
    assert not file.exists()
    assert read_heart(tmp_path / "logs", 0).age_s is None


def test_a_request_from_within_stops_like_a_signal(tmp_path: Path) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        request = StopRequest(tmp_path / "STOP", None)
        thread = threading.Thread(target=request.ask, args=("the launcher is gone",))
        thread.start()
        thread.join()
        assert (request.pending(), request.reason) == (STOP, "the launcher is gone")
        signal.raise_signal(signal.SIGTERM)  # the first signal still: the process lives
        assert (request.pending(), request.reason) == (STOP, "SIGTERM")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# A fake launcher, two levels above the rank, as `deepspeed` is above its `launch.py`.
LAUNCHER = """
import os, subprocess, sys
inner = "import subprocess, sys, os; p = subprocess.Popen(sys.argv[1:]); sys.exit(p.wait())"
environment = dict(os.environ)
if os.environ.get("SUPERVISES"):
    environment["PIPELINE_SUPERVISOR"] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", inner, *sys.argv[1:]], env=environment)
child.wait()
"""


FAKE = [sys.executable, "-c", LAUNCHER, sys.executable]
# A port of its own: at the usual one it would meet the ranks of any other run of this host.
DEEPSPEED = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2",
             "--master_port", free_port()]  # fmt: skip


def start_below(
    tmp_path: Path, launcher: list[str], supervises: bool
) -> tuple[subprocess.Popen[bytes], Path, Path]:
    """A long run below a process that is ended later; its run folder and its output."""
    recipe = write_recipe(tmp_path, "mlstm", run__steps=100_000, watch__hang_minutes=0.2)
    output = tmp_path / "output.txt"
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": search, "SUPERVISES": "1" * supervises}
    environment["OMP_NUM_THREADS"] = "1"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*launcher, "run_pretrain.py", str(recipe)], cwd=ROOT, env=environment, stdout=file,
            stderr=file,
        )  # fmt: skip
    run = tmp_path / "runs/mlstm"
    deadline = time.monotonic() + 240
    while not (run / "logs/heart-rank0.json").is_file():
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)
    return process, run, output


@pytest.mark.parametrize(
    "launcher", [FAKE, pytest.param(DEEPSPEED, marks=pytest.mark.long)], ids=["fake", "deepspeed"]
)
def test_a_run_whose_launcher_is_gone_saves_and_leaves(tmp_path: Path, launcher: list[str]) -> None:
    process, run, output = start_below(tmp_path, launcher, supervises=launcher is FAKE)
    hearts = [json.loads(path.read_text()) for path in (run / "logs").glob("heart-rank*.json")]
    ranks = [psutil.Process(heart["pid"]) for heart in hearts]
    process.terminate()  # what is between it and the ranks lives on
    process.wait()
    try:
        for rank in ranks:
            rank.wait(timeout=240)
        status = json.loads((run / "status.json").read_text())
        assert status["state"] == "stopped", output.read_text()
        assert (run / f"checkpoints/global_step{status['step']}/manifest.json").is_file()
        assert "the launcher is gone" in output.read_text()
    finally:
        for rank in ranks:
            if rank.is_running():
                rank.kill()


@pytest.mark.long
def test_a_run_goes_on_when_a_shell_above_it_ends(tmp_path: Path) -> None:
    process, run, _ = start_below(tmp_path, FAKE, supervises=False)
    rank = psutil.Process(json.loads((run / "logs/heart-rank0.json").read_text())["pid"])
    process.kill()
    process.wait()
    try:
        seen = 0
        beats_after = rank_beats(run) + 50
        while rank_beats(run) < beats_after or seen < 3:  # a few looks at the launchers
            assert rank.is_running() and not (run / "status.json").exists()
            time.sleep(1.5)
            seen += 1
    finally:
        rank.kill()


def rank_beats(run: Path) -> int:
    return int(json.loads((run / "logs/heart-rank0.json").read_text())["beats"])
