"""Two hosts, as network namespaces joined by a cable: training across them, and a cut cable.

Needs root and iproute2, and is skipped with a word elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.commands import python
from tests.e2e.hosts import Hosts, finished, hosts_of, wait_for_a_checkpoint
from tests.pipeline.tiny import losses, write_recipe


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with hosts_of(2) as pair:
        yield pair


def start_ranks(hosts: Hosts, folder: Path, *arguments: str) -> list[Path]:
    """Plain python, a rank a host; returns their logs."""
    logs = [folder / f"rank{rank}.log" for rank in (0, 1)]
    for rank, log in enumerate(logs):
        hosts.start(
            rank, log, sys.executable, *arguments, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0",
            MASTER_ADDR=hosts.addresses[0], MASTER_PORT="29511",
        )  # fmt: skip
    return logs


def test_preflight_across_hosts(hosts: Hosts, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "mlstm")
    logs = start_ranks(hosts, tmp_path, "-m", "pipeline", "preflight", str(recipe), "--dist")
    assert finished(hosts, logs, 300) == [0, 0], logs[0].read_text()
    assert "2 ranks met" in logs[0].read_text()


def test_a_cut_cable_ends_the_run_which_goes_on_with_the_host_that_is_left(
    hosts: Hosts, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, "mlstm", run__steps=100_000, checkpoint__every_steps=5)
    run = tmp_path / "runs/mlstm"
    logs = start_ranks(hosts, tmp_path, "run_pretrain.py", str(recipe), "watch.hang_minutes=0.3")
    step = wait_for_a_checkpoint(hosts, run, logs)
    hosts.cut(0)
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
    hostfile.write_text("".join(f"{address} slots=1\n" for address in hosts.addresses))
    logs = [tmp_path / f"host{host}.log" for host in (0, 1)]
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    for host, log in enumerate(logs):
        hosts.start(
            host, log, deepspeed, "--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(host),
            "--master_addr", hosts.addresses[0], "--master_port", "29512", "run_pretrain.py",
            str(recipe), "run.name=two",
        )  # fmt: skip
    assert finished(hosts, logs, 400) == [0, 0], logs[0].read_text()
    runs = tmp_path / "runs"
    assert losses(runs / "two") == pytest.approx(losses(runs / "one"), abs=1e-4)
    assert json.loads((runs / "two/status.json").read_text())["world_size"] == 2
