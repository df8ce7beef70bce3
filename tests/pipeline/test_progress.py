"""Progress of long work where there is no terminal: a line now and then, with the time left."""

from __future__ import annotations

import itertools

import pytest

from pipeline.progress import Progress


def test_a_line_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ticks = itertools.count(0, 12.0)
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: next(ticks))
    with Progress("fits", 1200, "fit") as progress:
        for _ in range(6):
            progress.update(100)
    assert capsys.readouterr().err.splitlines() == [
        "fits: 300 of 1,200 fits (25%), about 1.8 min left",
        "fits: 600 of 1,200 fits (50%), about 1.2 min left",
    ]


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("fits", 3, "fit") as progress:
        progress.update(3)
    assert capsys.readouterr() == ("", "")
