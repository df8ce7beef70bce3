"""Hosts as network namespaces on one switch, for tests of several nodes. Root and iproute2."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, environment
from tests.pipeline.tiny import losses


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """Namespaces, each with an address on `eth0`, whose other end is at the switch."""

    def __init__(self, count: int) -> None:
        self.switch = f"lm{os.getpid()}switch"
        self.names = [f"lm{os.getpid()}host{number}" for number in range(count)]
        self.addresses = [f"10.77.83.{number + 1}" for number in range(count)]
        self.processes: list[subprocess.Popen[str]] = []

    def join(self) -> None:
        for name in (self.switch, *self.names):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for number, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            port = f"port{number}"
            ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port,
               "netns", self.switch)  # fmt: skip
            ip("-n", self.switch, "link", "set", port, "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")

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

    def cut(self, host: int) -> None:
        """As a cable that is pulled: nothing is closed, nothing arrives."""
        ip("-n", self.names[host], "link", "set", "eth0", "down")

    def kill(self, host: int) -> None:
        """As a host whose power goes: no process of it closes anything."""
        self.cut(host)
        self._kill_processes(host)

    def pids(self, host: int) -> list[int]:
        found = subprocess.run(
            ["ip", "netns", "pids", self.names[host]], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]

    def end(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for host in range(len(self.names)):
            self._kill_processes(host)
        for name in (*self.names, self.switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def _kill_processes(self, host: int) -> None:
        for pid in self.pids(host):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def hosts_of(count: int) -> Iterator[Hosts]:
    """So many hosts; skips the test where there can be none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    made = Hosts(count)
    try:
        made.join()
    except subprocess.CalledProcessError as error:
        made.end()
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    try:
        yield made
    finally:
        made.end()


def finished(hosts: Hosts, logs: list[Path], limit_s: float) -> list[int]:
    """Exit codes of all that were started; fails with the logs when they take too long."""
    deadline = time.monotonic() + limit_s
    while any(process.poll() is None for process in hosts.processes):
        said = "\n".join(log.read_text() for log in logs)
        assert time.monotonic() < deadline, f"still running after {limit_s:g} s\n{said}"
        time.sleep(0.2)
    return [process.returncode for process in hosts.processes]


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
        assert all(code is None for code in ended) and time.monotonic() < deadline, said
        time.sleep(0.2)
