"""Faults drawn at random, one a trial: does the run resume, or say clearly why not?

    python -m tests.faults.trials [--trials 200] [--seed 0] [--json FILE]

A trial takes a run that was stopped half-way, does one thing to it, and starts it again. It is
survived when the run goes on to the losses, instances and weights of an undisturbed one (at another
layout: to rounding), or ends with a documented exit code and one message that names the cause; and
when no good checkpoint was lost. The last line is `survived / run`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from pipeline.train.checkpoint import list_checkpoints, problem
from tests.faults.disks import ON_A_DISK_OF_ITS_OWN, can_mount, full_disk, read_only
from tests.faults.driver import assert_same_run, saving, step_of
from tests.faults.scene import BATCH, CUT, STEPS, WORLD, Scene, finish
from tests.pipeline.tiny import losses, metrics
from tests.ranks import rank_context


def killed(
    scene: Scene, run: Path, dice: random.Random, moment: Callable[[], bool], within_s: float,
    bad_at: int | None = None, undisturbed: Path | None = None,
) -> None:  # fmt: skip
    """A random rank, at a random time after a moment has come; then as if it had never been."""
    attempt = scene.start(run.name, bad_at=bad_at)
    if attempt.wait_for(moment):
        sleep(dice.random() * within_s)
        attempt.kill(dice.randrange(WORLD))
    attempt.end()
    finish(scene, run, bad_at=bad_at)
    assert_same_run(run, undisturbed or scene.straight)


def killed_in_a_step(scene: Scene, run: Path, dice: random.Random) -> None:
    step = dice.randrange(CUT, STEPS)
    killed(scene, run, dice, lambda: step_of(run) >= step, 0.02)


def killed_in_a_save(scene: Scene, run: Path, dice: random.Random) -> None:
    killed(scene, run, dice, lambda: step_of(run) >= CUT and saving(run), 0.01)


def damaged_checkpoint(scene: Scene, run: Path, dice: random.Random) -> None:
    """Any file of the newest checkpoint, manifest and all: the one before it takes over."""
    newest, *others = list_checkpoints(run / "checkpoints")
    path = dice.choice(sorted(p for p in newest.rglob("*") if p.is_file()))
    damage(path, dice)
    found = problem(newest)
    said = finish(scene, run)
    assert found is None or "passed over a damaged checkpoint" in said
    assert_same_run(run, scene.straight)
    assert all(problem(other) is None for other in others)


def damaged_shard(scene: Scene, run: Path, dice: random.Random) -> None:
    """A shard of the data is never trained on when it is not what it was."""
    prepared = next(scene.folder.glob("prepared-*"))
    whole = scene.folder / "whole"
    shutil.copytree(prepared, whole)
    path = dice.choice(sorted(p for p in prepared.rglob("*.shard")))
    damage(path, dice)
    attempt = scene.start(run.name)
    codes = attempt.end()
    shutil.rmtree(prepared)
    whole.rename(prepared)
    assert codes == [3] * WORLD and path.name in attempt.log(), f"{codes}\n{attempt.log()}"
    assert "Traceback" not in attempt.log()
    finish(scene, run)
    assert_same_run(run, scene.straight)


def damage(path: Path, dice: random.Random) -> None:
    """Truncate a file, flip one of its bits, or remove it."""
    raw = bytearray(path.read_bytes())
    kind = dice.choice(["truncate", "flip", "remove"])
    if kind == "remove":
        path.unlink()
    elif kind == "truncate" or not raw:
        path.write_bytes(raw[: dice.randrange(max(1, len(raw)))])
    else:
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        path.write_bytes(raw)


def started_twice(scene: Scene, run: Path, dice: random.Random) -> None:
    """Two runs in one folder: one goes on, the other is refused and touches nothing; or finds
    nothing left to do, when the first was as fast as that."""
    attempts = [scene.start(run.name), scene.start(run.name)]
    ended, said = [attempt.end() for attempt in attempts], attempts[0].log()
    if ended != [[0] * WORLD] * 2:
        assert sorted(ended) == [[0] * WORLD, [2] * WORLD], f"{ended}\n{said}"
        assert "is in use by process" in said
    assert_same_run(run, scene.straight)


def moved(scene: Scene, run: Path, dice: random.Random) -> None:
    """Another number of ranks, another ZeRO stage, another micro-batch."""
    world, stage = dice.choice([1, 2, 4]), dice.randrange(4)
    micro = dice.choice([1, 2])
    finish(
        scene, run, f"engine.zero_stage={stage}", f"batch.micro_batch={micro}", world=world
    )  # fmt: skip
    ours, theirs = losses(run), losses(scene.straight)
    assert len(ours) == len(theirs)
    assert all(abs(a - b) <= 1e-4 * b for a, b in zip(ours, theirs, strict=True))


def no_number(scene: Scene, run: Path, dice: random.Random) -> None:
    """The loss of one batch is no number: it is passed over, also when a rank is killed on the way,
    or the run ends with its evidence, and goes on once the cause is mended."""
    step = dice.randrange(CUT, STEPS)
    bad_at = BATCH * step
    if dice.random() < 0.5:
        attempt = scene.start(run.name, "watch.nonfinite=stop", bad_at=bad_at)
        assert attempt.end() == [4] * WORLD, attempt.log()
        assert list((run / "logs").glob("evidence-step*.json"))
        finish(scene, run)
        assert_same_run(run, scene.straight)
        return
    undisturbed = scene.copy(f"{run.name}-undisturbed")
    finish(scene, undisturbed, bad_at=bad_at)
    killed(scene, run, dice, lambda: step_of(run) >= step, 0.02, bad_at, undisturbed)
    assert bad_at + BATCH not in [m["instances"] for m in metrics(run) if "train/loss" in m]
    shutil.rmtree(undisturbed)


def killed_in_an_export(scene: Scene, run: Path, dice: random.Random) -> None:
    """The next export makes what an undisturbed one makes."""
    finish(scene, run)
    wanted, began = scene.runs / f"{run.name}-export", monotonic()
    assert _export(scene, run, f"export.folder={wanted}")
    killed = _start_export(scene, run)
    killed.join(dice.random() * (monotonic() - began))
    killed.kill()
    killed.join()
    if not (run / "export").exists():
        assert _export(scene, run)
    assert not (run / "export.tmp").exists()
    names = {path.relative_to(wanted) for path in wanted.rglob("*.*") if path.name != "README.md"}
    assert {Path("config.json"), Path("model.safetensors")} <= names
    for name in names:
        assert (run / "export" / name).read_bytes() == (wanted / name).read_bytes(), name
    shutil.rmtree(wanted)


def _export(scene: Scene, run: Path, *overrides: str) -> bool:
    process = _start_export(scene, run, *overrides)
    process.join()
    return process.exitcode == 0


def _start_export(scene: Scene, run: Path, *overrides: str) -> Any:
    mine = [f"run.name={run.name}", *scene.fixed, *overrides]
    process = rank_context().Process(target=_export_model, args=(str(scene.recipe), mine))
    process.start()
    return process


def _export_model(recipe: str, overrides: list[str]) -> None:
    from pipeline.export.hf import export_model
    from pipeline.recipe import load_recipe

    export_model(load_recipe(recipe, overrides))


def changed_recipe(scene: Scene, run: Path, dice: random.Random) -> None:
    """Another run under the same name is refused, with the difference."""
    change = dice.choice(["optim.lr=0.5", "run.seed=9", "batch.window_tokens=8", "run.steps=99"])
    attempt = scene.start(run.name, change)
    assert attempt.end() == [2] * WORLD, attempt.log()
    assert "cannot be resumed with this recipe" in attempt.log()
    assert "Traceback" not in attempt.log()
    finish(scene, run)
    assert_same_run(run, scene.straight)


Fault = Callable[[Scene, Path, random.Random], None]
FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        killed_in_a_step, killed_in_a_save, damaged_checkpoint, damaged_shard, started_twice,
        moved, changed_recipe, no_number, full_disk, read_only, killed_in_an_export,
    )
}  # fmt: skip


def run_trial(scene: Scene, fault: str, seed: int) -> str | None:
    """None when it is survived, else what went wrong."""
    run = scene.copy(f"{fault}-{seed}")
    try:
        FAULTS[fault](scene, run, random.Random(seed))
    except AssertionError as error:
        return str(error) or traceback.format_exc()
    shutil.rmtree(run)
    return None


def main() -> None:
    """Draw faults and models in turn."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    faults = [fault for fault in FAULTS if fault not in ON_A_DISK_OF_ITS_OWN or can_mount()]
    dice, survived, run = random.Random(arguments.seed), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        scenes = {}
        for kind in ("mlstm", "transformer"):
            (Path(folder) / kind).mkdir()
            scenes[kind] = Scene(Path(folder) / kind, kind)
        for _ in range(arguments.trials):
            fault, kind = dice.choice(faults), dice.choice(list(scenes))
            seed = dice.randrange(10**6)
            why = run_trial(scenes[kind], fault, seed)
            run[fault] += 1
            survived[fault] += why is None
            print(f"{fault:<20} {kind:<12} {seed:>7} {why or 'survived'}", flush=True)
    for fault in FAULTS:
        print(f"{fault:<20} {survived[fault]} / {run[fault]}")
    print(f"trials survived / run: {survived.total()} / {run.total()}")
    if arguments.json:
        counts = {fault: [survived[fault], run[fault]] for fault in FAULTS}
        arguments.json.write_text(json.dumps(counts, indent=1) + "\n")
    sys.exit(survived.total() != run.total())


if __name__ == "__main__":
    main()
