"""Two hosts, as network namespaces joined by a cable: training across them, and a cut cable.

Needs root and iproute2, and is skipped with a word elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, environment, python
from tests.pipeline.tiny import losses, write_recipe

ADDRESSES = ("10.77.83.1", "10.77.83.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """Namespaces `a` and `b`, each with an interface `eth0`."""

    def __init__(self) -> None:
        self.names = [f"lm{os.getpid()}{letter}" for letter in "ab"]
        self.processes: list[subprocess.Popen[str]] = []

    def join(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        first, second = self.names
        ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0",
           "netns", second)  # fmt: skip
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")

    def start(self, host: int, log: Path, *command: str, **variables: str) -> None:
        """Start a command on a host, in a session of its own; its output goes into `log`."""
        with log.open("w") as stream:
            self.processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", self.names[host], *command], cwd=ROOT,
                    env={**environment(), "GLOO_SOCKET_IFNAME": "eth0", **variables},
                    stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, text=True,
                    start_new_session=True,
                )
            )  # fmt: skip

    def cut(self) -> None:
        """As a cable that is pulled: nothing is closed, nothing arrives."""
        ip("-n", self.names[0], "link", "set", "eth0", "down")

    def end(self) -> None:
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        for name in self.names:
            left = subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
            )
            for pid in left.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    pair = Hosts()
    try:
        pair.join()
    except subprocess.CalledProcessError as error:
        pair.end()
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    yield pair
    pair.end()


def start_ranks(hosts: Hosts, folder: Path, *arguments: str) -> list[Path]:
    """Plain python, a rank a host; returns their logs."""
    logs = [folder / f"rank{rank}.log" for rank in (0, 1)]
    for rank, log in enumerate(logs):
        hosts.start(
            rank, log, sys.executable, *arguments, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0",
            MASTER_ADDR=ADDRESSES[0], MASTER_PORT="29511",
        )  # fmt: skip
    return logs


def finished(hosts: Hosts, logs: list[Path], limit_s: float) -> list[int]:
    """Exit codes of all that were started; fails with the logs when they take too long."""
    deadline = time.monotonic() + limit_s
    while any(process.poll() is None for process in hosts.processes):
        said = "\n".join(log.read_text() for log in logs)
        assert time.monotonic() < deadline, f"still running after {limit_s:g} s\n{said}"
        time.sleep(0.2)
    return [process.returncode for process in hosts.processes]


def test_preflight_across_hosts(hosts: Hosts, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "mlstm")
    logs = start_ranks(hosts, tmp_path, "-m", "pipeline", "preflight", str(recipe), "--dist")
    assert finished(hosts, logs, 300) == [0, 0], logs[0].read_text()
    assert "2 ranks met" in logs[0].read_text()


def wait_for_a_checkpoint(hosts: Hosts, run: Path, logs: list[Path]) -> int:
    """The step of the first checkpoint that is whole, once training has gone on from it."""
    deadline = time.monotonic() + 300
    while True:
        found = sorted(run.glob("checkpoints/global_step*/manifest.json"))
        steps = [int(path.parent.name.removeprefix("global_step")) for path in found]
        if steps and len(losses(run)) > min(steps):
            return max(steps)
        ended = [process.poll() for process in hosts.processes]
        said = "\n".join(log.read_text() for log in logs)
        assert ended == [None, None] and time.monotonic() < deadline, said
        time.sleep(0.2)


def test_a_cut_cable_ends_the_run_which_goes_on_with_the_host_that_is_left(
    hosts: Hosts, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, "mlstm", run__steps=100_000, checkpoint__every_steps=5)
    run = tmp_path / "runs/mlstm"
    logs = start_ranks(hosts, tmp_path, "run_pretrain.py", str(recipe), "watch.hang_minutes=0.3")
    step = wait_for_a_checkpoint(hosts, run, logs)
    hosts.cut()
    codes = finished(hosts, logs, 240)
    assert all(code != 0 for code in codes), codes
    more = python("run_pretrain.py", recipe, "run.resume=must", "run.stop_after_minutes=0.0001")
    assert more.returncode == 75, more.stdout + more.stderr
    assert json.loads((run / "status.json").read_text())["step"] > step


@pytest.mark.long
def test_deepspeed_across_hosts_gives_the_losses_of_one(hosts: Hosts, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "mlstm")
    assert python("run_pretrain.py", recipe, "run.name=one").returncode == 0
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    logs = [tmp_path / f"host{host}.log" for host in (0, 1)]
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    for host, log in enumerate(logs):
        hosts.start(
            host, log, deepspeed, "--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(host),
            "--master_addr", ADDRESSES[0], "--master_port", "29512", "run_pretrain.py", str(recipe),
            "run.name=two",
        )  # fmt: skip
    assert finished(hosts, logs, 400) == [0, 0], logs[0].read_text()
    runs = tmp_path / "runs"
    assert losses(runs / "two") == pytest.approx(losses(runs / "one"), abs=1e-4)
    assert json.loads((runs / "two/status.json").read_text())["world_size"] == 2
