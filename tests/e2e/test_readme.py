"""The README's first command, as it stands, from a fresh copy of the project."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e.commands import ROOT

README = (ROOT / "README.md").read_text()


def test_make_demo_works_twice_and_goes_on_under_mixed_sparsity(tmp_path: Path) -> None:
    assert re.search(r"```bash\nmake demo\n```", README)
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.splitlines():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    # The set-up itself has just been tested by getting here; its result is taken over.
    venv = Path(sys.executable).parents[1]
    (venv / ".ready").touch()
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    first, second = (
        subprocess.run(
            ["make", "demo", f"VENV={venv}"], cwd=tmp_path, env=environment, capture_output=True,
            text=True, stdin=subprocess.DEVNULL, check=False,
        )
        for _ in range(2)
    )  # fmt: skip
    assert first.returncode == 0, first.stdout + first.stderr
    assert second.returncode == 0 and second.stdout.count("up to date") == 10, second.stdout
    for run in ("demo_mlstm", "demo_transformer"):
        folder = tmp_path / "runs" / run
        assert f"report: runs/{run}/report.html" in first.stdout
        heldout = json.loads((folder / "evals/heldout.json").read_text())
        assert heldout["bits_per_byte"] < 0.7 * heldout["unigram_bits_per_byte"]
        sentiment = json.loads((folder / "evals/sentiment.json").read_text())
        assert sentiment["accuracy"] > sentiment["majority_accuracy"]
    _sparse_demo(tmp_path)


def _sparse_demo(folder: Path) -> None:
    """The README's command, shorter; its report shows the phases and the three columns."""
    line = next(line for line in README.splitlines() if "run.name=demo_mst" in line)
    words = shlex.split(line)
    sparse = subprocess.run(
        [sys.executable, *words[1:], "run.steps=80", "run.log_every_steps=4"],
        cwd=folder, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert sparse.returncode == 0, sparse.stdout + sparse.stderr
    report = (folder / "runs/demo_mst/report.md").read_text()
    for phase in ("warm-up", "ultra-sparse", "regrowth", "restored"):
        assert re.search(rf"^\| {phase} \|", report, re.MULTILINE), phase
    for column in ("active weights", "FLOPs counted", "seconds"):
        assert f"| {column} |" in report, column
    assert "compare runs/demo_transformer runs/demo_mst" in README


def test_every_path_and_command_that_the_readme_names_exists() -> None:
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"(?:recipes|studies)/demo_\w+\.yaml", README):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"^make (\w+)$", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
