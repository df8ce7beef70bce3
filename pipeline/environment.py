"""Where this process runs: launcher variables, device, and the settings that must precede imports.

`deepspeed`, `torchrun`, `srun` and plain `python` describe the world in different variables; after
`prepare_environment()` they all look alike (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and _PORT).
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


# What a supervisor tells the processes it starts: its process id, and where they leave the exit
# code that their launcher will change.
SUPERVISOR = "PIPELINE_SUPERVISOR"
EXIT_CODE_FILE = "PIPELINE_EXIT_CODE_FILE"


def prepare_environment() -> None:
    """Fill what the launcher left open. Never overwrites a variable the user set."""
    _from_slurm()
    keep_freed_memory()
    defaults = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        # Tokenizers' thread pool does not survive a fork; nothing in training tokenizes.
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_EXTENSIONS_DIR": str(_extensions_folder()),
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = "29500" if int(os.environ["WORLD_SIZE"]) > 1 else free_port()
    # Ops are built with the ninja beside this interpreter, also when the venv is not activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees for the next one, which would otherwise get it back
    page by page from the kernel: thousands of faults a step on a processor."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(option, 1 << 30)


def _from_slurm() -> None:
    """srun starts one task a rank and says so in SLURM_* variables only."""
    if "RANK" in os.environ or "SLURM_PROCID" not in os.environ:
        return
    if int(os.environ.get("SLURM_NTASKS", "1")) < 2:
        return
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
    os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")
    nodes = os.environ.get("SLURM_JOB_NODELIST") or os.environ.get("SLURM_NODELIST", "")
    os.environ.setdefault("MASTER_ADDR", first_slurm_host(nodes))
    # One port per job, so that two jobs on a node do not meet.
    os.environ.setdefault(
        "MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000)
    )


def first_slurm_host(nodes: str) -> str:
    """First host of a SLURM node list: `gpu[003-007,9],login1` -> `gpu003`."""
    first_of_ranges = re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes)
    return first_of_ranges.partition(",")[0] or "127.0.0.1"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _extensions_folder() -> Path:
    """A build cache of our own per environment: a shared one breaks across virtual environments."""
    tag = re.sub(r"[^A-Za-z0-9]+", "-", sys.prefix).strip("-")[-60:]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "lm-pretraining" / "torch_extensions" / tag
