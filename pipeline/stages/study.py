"""Studies: arms x seeds over one recipe, one after another, resumable after a kill.

Every arm is an ordinary run under `runs/STUDY/`, so a study that is started again skips what is
done and resumes what was cut off. At the end one table and one comparison page.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.errors import PipelineError, RecipeError, StoppedAndSaved
from pipeline.recipe import Recipe, load_grid, load_recipe
from pipeline.recipe.grid import GridConfig
from pipeline.report.compare import By
from pipeline.report.study import study_table
from pipeline.run_folder import RunFolder
from pipeline.stages.runner import ALL, run_stages


def run_study(
    path: Path, overrides: Sequence[str] = (), *, detach: bool = False, verify: bool = False
) -> None:
    """Run all arms of a study file. `detach` goes on in the background and returns at once.

    `overrides` count as if they stood at the end of `grid.shared`: an arm's own go before them.

    Every arm's recipe is validated before the first one starts. An arm that fails is reported and
    the others still run; the study then ends with that arm's error.
    """
    grid = load_grid(path)
    arms = expand(grid.model_copy(update={"shared": [*grid.shared, *overrides]}))
    out = Path(grid.folder) / grid.name
    if detach:
        _detach([str(path), *overrides, *["--verify"] * verify], out)
        return
    # A closed terminal must not end a study of hours.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    failures: list[PipelineError] = []
    for number, (name, recipe) in enumerate(arms, 1):
        print(f"== {grid.name}: {name} ({number} of {len(arms)})", flush=True)
        try:
            run_stages(recipe, grid.stages, verify=verify)
        except StoppedAndSaved:  # the study was meant: the same command goes on with this arm
            raise
        except PipelineError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            failures.append(error)
    print(_summarise(grid, arms) or "no run has trained, so there is no table")
    if failures:
        raise type(failures[0])(f"{len(failures)} of {len(arms)} runs failed, see above")


def expand(grid: GridConfig) -> list[tuple[str, Recipe]]:
    """(run name, recipe) of every arm and seed, in the order in which they run."""
    if unknown := set(grid.stages) - set(ALL):
        raise RecipeError(
            f"grid.stages: {sorted(unknown)} are not stages; there are {', '.join(ALL)}"
        )
    runs = []
    for seed in grid.seeds:
        for arm, overrides in grid.arms.items():
            name = f"{arm}-seed{seed}"
            fixed = [
                f"run.name={name}",
                f"run.folder={Path(grid.folder) / grid.name}",
                f"run.seed={seed}",
            ]
            runs.append((name, load_recipe(grid.recipe, [*grid.shared, *overrides, *fixed])))
    return runs


def summarise_study(path: Path, price: float | None = None, by: By = "bits") -> Path:
    """Write the table and the page of a study's runs as they stand; the path of the table.

    RecipeError when none of them has trained.
    """
    grid = load_grid(path)
    table = _summarise(grid, expand(grid), price, by)
    if table is None:
        raise RecipeError(f"{path}: none of its runs has trained: start `python -m pipeline run`")
    return table


def _summarise(
    grid: GridConfig, arms: list[tuple[str, Recipe]], price: float | None = None, by: By = "bits"
) -> Path | None:
    """None when no run has trained."""
    groups: dict[str, list[Path]] = {arm: [] for arm in grid.arms}
    missing = []
    for name, recipe in arms:
        folder = RunFolder(recipe.run_folder)
        if any("train/loss" in line for line in folder.read_metrics()):
            groups[name.rpartition("-seed")[0]].append(folder.root)
        else:
            missing.append(name)
    done = {arm: folders for arm, folders in groups.items() if folders}
    out = Path(grid.folder) / grid.name
    return study_table(done, out, grid.name, missing, price, by) if done else None


def _detach(arguments: Sequence[str], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    log = out / "study.log"
    with log.open("a") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", *arguments],
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip
    print(f"study runs in the background as process {process.pid}, log {log}")
