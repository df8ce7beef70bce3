"""Three hosts with ssh daemons of their own, under `deepspeed --hostfile`: one of them dies, and
the run goes on with those that are left.

Needs root, iproute2, openssh-server and pdsh, and is skipped with a word elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.hosts import Hosts, finished, hosts_of, wait_for_a_checkpoint
from tests.pipeline.tiny import losses, metrics, write_recipe

NEEDED = ("/usr/sbin/sshd", "ssh", "ssh-keygen", "pdsh")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not all(map(shutil.which, NEEDED)), reason=f"not installed: one of {', '.join(NEEDED)}"
    ),
]
DEEPSPEED = str(Path(sys.executable).parent / "deepspeed")


def start_daemons(hosts: Hosts, folder: Path) -> dict[str, str]:
    """An ssh daemon on every host that takes one new key; the variables of who calls them."""
    key, config, bin_ = folder / "key", folder / "ssh_config", folder / "bin"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    os.makedirs("/run/sshd", exist_ok=True)
    sshd = ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", str(key),
            "-o", f"AuthorizedKeysFile={key}.pub", "-o", "StrictModes=no", "-o", "UsePAM=no",
            "-o", "PermitRootLogin=prohibit-password", "-o", "PidFile=none"]  # fmt: skip
    for host in range(len(hosts.names)):
        hosts.start(host, folder / f"sshd{host}.log", *sshd)
    hosts.processes.clear()  # they end with their namespaces
    config.write_text(
        f"IdentityFile {key}\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n"
        "LogLevel ERROR\nServerAliveInterval 5\nServerAliveCountMax 2\n"
    )
    bin_.mkdir()
    (bin_ / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
    (bin_ / "ssh").chmod(0o755)
    # What the launcher exports to the hosts.
    (folder / "exported").write_text("GLOO_SOCKET_IFNAME=eth0\nOMP_NUM_THREADS=1\n")
    return {"PATH": f"{bin_}:{os.environ['PATH']}", "DS_ENV_FILE": str(folder / "exported")}


def launch(
    hosts: Hosts, folder: Path, using: list[int], variables: dict[str, str], *arguments: str
) -> Path:
    """`deepspeed --hostfile` on the first host, over those in `using`; its log."""
    hostfile, log = folder / f"hostfile{len(using)}", folder / f"launch{len(using)}.log"
    hostfile.write_text("".join(f"{hosts.addresses[host]} slots=1\n" for host in using))
    hosts.start(
        0, log, DEEPSPEED, "--hostfile", str(hostfile), "--master_addr", hosts.addresses[0],
        "--master_port", f"295{len(using)}0", "run_pretrain.py", *arguments, **variables,
    )  # fmt: skip
    return log


def test_a_host_dies_and_the_others_go_on(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, "mlstm", run__steps=100_000, checkpoint__every_steps=5,
        batch__global_batch=12, optim__decay_steps=100_000,
    )  # fmt: skip
    run = tmp_path / "runs/mlstm"
    with hosts_of(3) as hosts:
        variables = start_daemons(hosts, tmp_path)
        log = launch(hosts, tmp_path, [0, 1, 2], variables, str(recipe), "watch.hang_minutes=0.3")
        wait_for_a_checkpoint(hosts, run, [log])
        assert json.loads((run / "env.json").read_text())["world_size"] == 3
        hosts.kill(2)
        assert finished(hosts, [log], 240) != [0], log.read_text()
        trained = len(losses(run))
        hosts.processes.clear()
        more = [str(recipe), "run.resume=must", "run.stop_after_minutes=0.05"]
        log = launch(hosts, tmp_path, [0, 1], variables, *more)
        finished(hosts, [log], 240)
        status = json.loads((run / "status.json").read_text())
        assert (status["state"], status["world_size"]) == ("stopped", 2), log.read_text()
        assert status["step"] > trained
        # Every instance once and in order, whichever hosts trained on it.
        seen = [line["instances"] for line in metrics(run) if "train/loss" in line]
        assert seen == list(range(12, 12 * len(seen) + 1, 12))
