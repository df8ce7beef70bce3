"""What every benchmark command shares: interleaved arms, medians, rows, the machine's name.

A row compares us with a named peer in the same run: `ratio` is above 1 where ours is better,
whatever the metric's direction.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One comparison. `metric` names the unit; `higher_is_better` says which way it goes."""

    case: str
    metric: str
    ours: float
    peer: float | None
    peer_name: str | None
    ratio: float | None


def row(
    case: str, metric: str, ours: float, peer: float | None = None,
    peer_name: str | None = None, lower_is_better: bool = False,
) -> Row:  # fmt: skip
    """A row with its ratio; without a peer it only reports."""
    ratio = None if peer is None else (peer / ours if lower_is_better else ours / peer)
    return Row(case, metric, ours, peer, peer_name, ratio)


def interleaved(arms: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of what each arm returns, over rounds in which every arm runs once, so that
    whatever else the machine does falls on all of them. A round before them warms up."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm()
    for _ in range(rounds):
        for name, arm in arms.items():
            found[name].append(arm())
    return {name: statistics.median(values) for name, values in found.items()}


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process, and those it starts meanwhile, on one core."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def machine() -> str:
    """Cores, processor, memory and versions in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0].partition(":")[2].strip() if models else name
    python = platform.python_version()
    return f"{cores} cores of {name}, {memory:.0f} GiB, {platform.system()}, Python {python}"


def options(description: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    return parser


def report(rows: Sequence[Row], path: Path | None) -> None:
    """Print a table, and write the rows as JSON where asked."""
    print(f"\n{machine()}\n")
    wide = 2 + max(len(found.case) for found in rows)
    print(f"{'case':<{wide}}{'metric':<28}{'ours':>12}{'peer':>12}  {'':<22}{'ratio':>8}")
    for found in rows:
        peer = "" if found.peer is None else f"{found.peer:,.2f}"
        ratio = "" if found.ratio is None else f"{found.ratio:.2f}"
        name = found.peer_name or ""
        print(
            f"{found.case:<{wide}}{found.metric:<28}{found.ours:>12,.2f}{peer:>12}  "
            f"{name:<22}{ratio:>8}"
        )
    if path is not None:
        content: list[dict[str, Any]] = [asdict(found) for found in rows]
        path.write_text(json.dumps(content, indent=1) + "\n")
