"""Requests to stop: files, clocks and real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.train import stop
from pipeline.train.stop import INTERRUPT, STOP, StopRequest

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of the test process, put back afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nothing_is_pending_unasked(tmp_path: Path) -> None:
    request = StopRequest(tmp_path / "STOP", None)
    assert request.pending() == 0 and request.reason == ""


def test_a_stop_file_asks_to_stop(tmp_path: Path) -> None:
    request = StopRequest(tmp_path / "STOP", None)
    (tmp_path / "STOP").touch()
    assert (request.pending(), request.reason) == (STOP, "STOP file")


def test_the_time_limit_counts_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(stop, "monotonic", lambda: now)
    request = StopRequest(tmp_path / "STOP", 1.5)
    now = 1089.9
    assert request.pending() == 0
    now = 1090.1
    assert (request.pending(), request.reason) == (STOP, "time limit")


@pytest.mark.parametrize(
    ("number", "wanted"),
    [(signal.SIGTERM, STOP), (signal.SIGUSR1, STOP), (signal.SIGINT, INTERRUPT)],
)
def test_a_real_signal_is_kept_until_it_is_polled(
    tmp_path: Path, number: signal.Signals, wanted: int
) -> None:
    request = StopRequest(tmp_path / "STOP", None)
    os.kill(os.getpid(), number)
    assert request.pending() == request.pending() == wanted
    assert request.reason == number.name


SCRIPT = """
import os, signal, sys
from pathlib import Path
from pipeline.train.stop import StopRequest
request = StopRequest(Path("no such file"), None)
signal.raise_signal(signal.{first})
print("still here", request.pending(), flush=True)
signal.raise_signal(signal.{second})
print("not reached", flush=True)
"""


@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGTERM"), ("SIGTERM", "SIGINT")])
def test_a_second_signal_ends_the_process_at_once(first: str, second: str) -> None:
    code = SCRIPT.format(first=first, second=second)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "still here 1\n"
    assert done.returncode == -getattr(signal, second)
