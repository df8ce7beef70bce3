"""The README's first command, as it stands, from a fresh copy of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e.commands import ROOT

README = (ROOT / "README.md").read_text()


def test_make_demo_works_and_a_second_one_finds_everything_done(tmp_path: Path) -> None:
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


def test_every_path_and_command_that_the_readme_names_exists() -> None:
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"(?:recipes|studies)/demo_\w+\.yaml", README):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"^make (\w+)$", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
