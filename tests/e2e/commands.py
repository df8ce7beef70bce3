"""Running the project's commands as a user would: in a process of its own, from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str | Path, limit_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command line from the repository root; output as text."""
    return subprocess.run(
        [str(a) for a in arguments], cwd=ROOT, env=environment(), capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=limit_s, check=False,
    )  # fmt: skip


def python(*arguments: str | Path, limit_s: float = 300) -> subprocess.CompletedProcess[str]:
    return command(sys.executable, *arguments, limit_s=limit_s)


def environment() -> dict[str, str]:
    bin_folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The command ended with `code`, one message holding `words`, and no traceback."""
    said = result.stdout + result.stderr
    assert result.returncode == code, said
    assert "Traceback" not in said
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    for word in words:
        assert word in result.stderr, f"{word!r} not in {result.stderr}"
