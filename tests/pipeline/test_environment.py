"""Launchers' variables, and that nobody's own setting is overwritten."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.environment import first_slurm_host, free_port, prepare_environment

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
            "TOKENIZERS_PARALLELISM", "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME")  # fmt: skip


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment without any launcher, put back afterwards."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name in LAUNCHER or name.startswith("SLURM_"):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def prepared(**variables: str) -> dict[str, str]:
    os.environ.update(variables)
    prepare_environment()
    return dict(os.environ)


SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "41234",
         "SLURM_JOB_NODELIST": "gpu[003-007,9],login1"}  # fmt: skip


def test_without_a_launcher_there_is_one_rank() -> None:
    found = prepared()
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"]) == ("0", "0", "1")
    assert found["MASTER_ADDR"] == "127.0.0.1" and 0 < int(found["MASTER_PORT"]) < 65536


def test_srun_is_translated() -> None:
    found = prepared(**SLURM)
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"]) == ("5", "1", "8")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("gpu003", "21234")


def test_ranks_of_a_job_agree_on_the_port_and_jobs_do_not_share_it() -> None:
    def port(**changes: str) -> str:
        for name in LAUNCHER:
            os.environ.pop(name, None)
        return prepared(**(SLURM | changes))["MASTER_PORT"]

    assert port(SLURM_PROCID="0") == port(SLURM_PROCID="7", SLURM_LOCALID="3")
    assert port(SLURM_JOB_ID="41235") != port()
    assert 1024 < int(port(SLURM_JOB_ID="99999999")) < 65536


def test_a_launcher_that_set_rank_wins_over_slurm() -> None:
    found = prepared(**SLURM, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="10.0.0.1",
                     MASTER_PORT="1234")  # fmt: skip
    assert (found["RANK"], found["WORLD_SIZE"]) == ("0", "2")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "1234")


def test_an_allocation_with_one_task_is_one_rank() -> None:
    found = prepared(**(SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}))
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")


def test_an_address_of_ones_own_survives_srun() -> None:
    found = prepared(**SLURM, MASTER_ADDR="10.0.0.1", MASTER_PORT="1234")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"], found["RANK"]) == ("10.0.0.1", "1234", "5")


def test_what_the_user_set_is_never_overwritten() -> None:
    own = {"TOKENIZERS_PARALLELISM": "true", "TORCH_EXTENSIONS_DIR": "/mine", "MASTER_PORT": "99"}
    found = prepared(**own)
    assert {name: found[name] for name in own} == own


def test_ranks_without_a_port_meet_at_a_fixed_one() -> None:
    assert prepared(RANK="1", WORLD_SIZE="2")["MASTER_PORT"] == "29500"


def test_the_interpreters_tools_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/some/venv/bin/python")
    assert prepared()["PATH"].split(os.pathsep)[0] == "/some/venv/bin"


def test_compiled_extensions_are_kept_apart_by_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = []
    for prefix in ("/a/.venv", "/b/.venv"):
        os.environ.pop("TORCH_EXTENSIONS_DIR", None)
        monkeypatch.setattr("sys.prefix", prefix)
        folders.append(prepared(XDG_CACHE_HOME=str(tmp_path))["TORCH_EXTENSIONS_DIR"])
    assert folders[0] != folders[1]
    assert all(Path(folder).is_relative_to(tmp_path) for folder in folders)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[003-007,9],login1", "gpu003"),
        ("gpu[9,10-12]", "gpu9"),
        ("gpu[7]", "gpu7"),
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("a-b.c,gpu[1-2]", "a-b.c"),
        ("rack[0-63]_blade[10-41]", "rack0_blade10"),
        ("", "127.0.0.1"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_slurm_host(nodes) == first


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", int(free_port())))
