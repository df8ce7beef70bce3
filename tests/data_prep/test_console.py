"""Work goes on when what reads its console has gone."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

WORK = """
import sys
from data_prep.console import outlive_console
outlive_console(); outlive_console()
for number in range(20_000):
    print("line", number, flush=number % 2 == 0)
    print("error", number, file=sys.stderr)
open("done", "w").write("all of it")
"""


def test_a_terminal_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", f"import time\n{WORK}".replace(
            "    print(", "    time.sleep(0.0001); print(", 1)])  # fmt: skip
    os.read(terminal, 100)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert Path("done").read_text() == "all of it"


@pytest.mark.parametrize("both", [True, False])
def test_a_reader_that_has_seen_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", WORK],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if both else subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.wait(60) == 0
    assert Path("done").read_text() == "all of it"
