"""examples/launch: the scripts are run with launchers that only write down what they were given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

import run_pretrain

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "examples/launch"
RECIPE = "recipes/demo_mlstm.yaml"


@pytest.fixture
def stubs(tmp_path: Path) -> dict[str, str]:
    """An environment in which launchers log their arguments, one a line, and end with $CODE."""
    for name in ("srun", "scontrol", "deepspeed"):
        stub = tmp_path / name
        stub.write_text(
            f'#!/bin/bash\n{{ echo "{name}"; printf "%s\\n" "$@"; echo; }} >> {tmp_path}/log\n'
            'case "$*" in *preflight*) exit "${PREFLIGHT:-0}";; esac\n'
            f'test {name} = scontrol || exit "${{CODE:-0}}"\n'
        )
        stub.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}


def run(script: str, environment: dict[str, str], *arguments: str) -> tuple[int, list[list[str]]]:
    """The exit code, and the command lines of the launchers that were called."""
    result = subprocess.run(
        ["bash", LAUNCH / script, *arguments], cwd=ROOT, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    log = Path(environment["PATH"].split(":")[0]) / "log"
    calls = log.read_text().split("\n\n")[:-1] if log.exists() else []
    return result.returncode, [call.split("\n") for call in calls]


def script_arguments(call: list[str]) -> list[str]:
    return call[call.index("run_pretrain.py") + 1 :]


@pytest.mark.parametrize("script", ["slurm.sbatch", "ssh.sh", "no_ssh.sh"])
def test_bash_can_read_it(script: str) -> None:
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (2, False), (1, False)])
def test_slurm_requeues_what_was_stopped_and_saved(
    stubs: dict[str, str], code: int, requeued: bool
) -> None:
    odd = "run.name=a b;c"  # stays one word
    ended, calls = run("slurm.sbatch", {**stubs, "CODE": str(code)}, RECIPE, odd)
    assert ended == code
    assert calls[0][:4] == ["srun", ".venv/bin/python", "-m", "pipeline"]
    assert calls[0][-3:] == [RECIPE, odd, "--dist"]
    assert "--kill-on-bad-exit=1" in calls[1] and script_arguments(calls[1]) == [RECIPE, odd]
    assert calls[2:] == ([["scontrol", "requeue", "7"]] if requeued else [])


def test_slurm_trains_nothing_after_a_cross(stubs: dict[str, str]) -> None:
    code, calls = run("slurm.sbatch", {**stubs, "PREFLIGHT": "2"}, RECIPE)
    assert code == 2 and len(calls) == 1


def test_slurm_is_asked_for_a_signal_ahead_of_the_limit() -> None:
    text = (LAUNCH / "slurm.sbatch").read_text()
    # Without `B:` the tasks get it; a batch script would have to hand it on.
    assert "#SBATCH --signal=USR1@300" in text and "#SBATCH --requeue" in text


@pytest.mark.parametrize("script", ["ssh.sh", "no_ssh.sh"])
def test_deepspeed_takes_the_arguments(stubs: dict[str, str], script: str) -> None:
    from deepspeed.launcher.runner import fetch_hostfile, parse_args

    settings = {"NODE_RANK": "1", "MASTER_ADDR": "node1"}
    code, calls = run(script, {**stubs, **settings}, RECIPE, "run.steps=5")
    assert code == 0 and calls[0][0] == "deepspeed"
    parsed = parse_args(calls[0][1:])
    assert parsed.user_script == "run_pretrain.py"
    assert fetch_hostfile(str(ROOT / parsed.hostfile)) == {"node1": 8, "node2": 8}
    ours = run_pretrain.parse(["--local_rank=0", *parsed.user_args])
    assert (ours.recipe, ours.overrides) == (RECIPE, ["run.steps=5"])
    if script == "no_ssh.sh":
        assert (parsed.no_ssh, parsed.node_rank, parsed.master_addr) == (True, 1, "node1")


@pytest.mark.parametrize("script", ["ssh.sh", "no_ssh.sh"])
def test_a_missing_hostfile_is_no_silent_run_on_one_host(
    stubs: dict[str, str], script: str
) -> None:
    environment = {**stubs, "HOSTFILE": "/none", "NODE_RANK": "0", "MASTER_ADDR": "node1"}
    assert run(script, environment, RECIPE) == (2, [])


def test_kubernetes_says_the_same_thing_everywhere() -> None:
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(given["WORLD_SIZE"])
    name = job["metadata"]["name"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert given["MASTER_ADDR"] == f"{name}-0.{pod['subdomain']}"
    assert service["spec"]["selector"] == {"job-name": name}
    assert set(given) == {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    python, script, *arguments = container["command"]
    assert python == "python" and (ROOT / script).is_file()
    assert run_pretrain.parse(arguments).recipe == "/data/recipe.yaml"
    codes = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert codes == {"FailJob": [2, 3, 4], "Ignore": [75]}
    assert all(
        rule.get("onExitCodes", {}).get("containerName", "rank") == container["name"]
        for rule in spec["podFailurePolicy"]["rules"]
    )
