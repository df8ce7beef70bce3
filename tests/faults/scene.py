"""A run that was stopped half-way, on which faults are tried, and the undisturbed one beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.faults.driver import Attempt, run_to_the_end, step_of
from tests.pipeline.tiny import write_recipe

STEPS, CUT = 12, 7  # checkpoints at 3, 6 and the cut
BATCH = 8  # instances
WORLD = 2
_NO_DROPOUT = ["model.config.resid_pdrop=0", "model.config.embd_pdrop=0"]


class Scene:
    """A recipe, its undisturbed run, and one that was stopped half-way, copied for each trial."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self.recipe = write_recipe(
            folder, kind, run__steps=STEPS, checkpoint__every_steps=3, eval__every_steps=0,
            engine__zero_stage=1,
        )  # fmt: skip
        self.fixed = _NO_DROPOUT if kind == "transformer" else []
        self.straight = self.runs / "straight"
        run_to_the_end(WORLD, self.recipe, ["run.name=straight", *self.fixed], self.straight)
        self._stop_half_way()

    def _stop_half_way(self) -> None:
        run = self.runs / "half"
        attempt = self.start("half")
        attempt.wait_for(lambda: step_of(run) >= CUT - 1)
        (run / "STOP").touch()
        assert attempt.end() == [75] * WORLD, attempt.log()

    def start(
        self, name: str, *overrides: str, world: int = WORLD, bad_at: int | None = None
    ) -> Attempt:
        run = self.runs / name
        mine = [f"run.name={name}", *self.fixed, *overrides]
        return Attempt(world, self.recipe, mine, run, bad_at)

    def copy(self, name: str) -> Path:
        """The half-done run under another name."""
        run = self.runs / name
        shutil.copytree(self.runs / "half", run)
        return run


def finish(
    scene: Scene, run: Path, *overrides: str, world: int = WORLD, bad_at: int | None = None
) -> str:
    """Start again and let it end; what it said."""
    attempt = scene.start(run.name, *overrides, world=world, bad_at=bad_at)
    codes = attempt.end()
    assert codes == [0] * world, f"{codes}\n{attempt.log()}"
    return attempt.log()
