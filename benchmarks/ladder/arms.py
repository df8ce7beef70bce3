"""Arms: ordinary runs of a study, each trained in a process of its own, and what became of them.

A process of a fork server that has imported everything starts in a second where a command takes
eight. An arm is skipped where its run folder shows that it is done, and resumed where it was cut
off; what is written is what `python -m pipeline run` would write.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_prep.errors import Diverged
from data_prep.manifest import write_atomic
from pipeline.recipe import Recipe, load_recipe
from pipeline.run_folder import RunFolder

MODELS = ("mlstm", "transformer")
REFERENCE_BYTES = 512  # an update of both recipes
_ROWS = {"mlstm": 8, "transformer": 4}  # of their batches
_BITS = "eval/bits_per_byte"
_CORPUS = Path("corpora/amazon_musical_instruments_5/reviews.json.gz")
_SAMPLE = "data_prep/sample/fine_foods_train.jsonl.xz"
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["torch", "deepspeed", "transformers", "pipeline.train.start"])


@dataclass(frozen=True)
class Scale:
    """How large the whole benchmark is."""

    folder: Path  # where studies lie
    total_bytes: int  # that every arm reads
    factors: tuple[int, ...]  # batches, as multiples of the reference
    rates: tuple[float, ...]  # that are tried at every batch
    sgd_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    # Share of the bytes after which the best so many of a batch's rates go on.
    rungs: tuple[tuple[float, int], ...] = ((0.25, 2), (0.5, 1))
    doublings: int = 8  # at most, of the rate beyond those tried, until it is not stable
    models: tuple[str, ...] = MODELS
    evaluates: bool = True  # sentiment of the end points

    def steps(self, factor: int, share: float = 1.0) -> int:
        """Updates that read `share` of the bytes at a batch."""
        return round(share * self.total_bytes / (factor * REFERENCE_BYTES))


@dataclass
class Study:
    """Arms over one recipe at equal bytes, each a batch and its overrides."""

    name: str
    model: str
    scale: Scale
    shared: list[str] = field(default_factory=list)
    arms: dict[str, list[str]] = field(default_factory=dict)

    def add(self, arm: str, factor: int, *overrides: str, parts: int = 1) -> str:
        """An arm at a batch, in `parts` micro-batches; its name."""
        rows, steps = _ROWS[self.model] * factor, self.scale.steps(factor)
        self.arms[arm] = [
            f"batch.global_batch={rows}", f"batch.micro_batch={rows // parts}",
            f"run.steps={steps}", f"eval.every_steps={max(1, steps // 16)}",
            f"run.log_every_steps={max(1, steps // 128)}", *overrides,
        ]  # fmt: skip
        return arm

    def tree(self, arms: list[str], stages: list[str]) -> dict[str, Any]:
        """A study file over some of the arms."""
        return {
            "grid": {
                "name": self.name, "folder": str(self.scale.folder), "recipe": self._recipe,
                "shared": self._shared, "seeds": [1], "stages": stages,
                "arms": {arm: self.arms[arm] for arm in arms},
            }
        }  # fmt: skip

    def write(self, arms: list[str], stages: list[str]) -> Path:
        """The study file, to be run again by hand."""
        path = self.scale.folder / f"{self.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, yaml.safe_dump(self.tree(arms, stages), sort_keys=False, width=100))
        return path

    def recipe(self, arm: str, seed: int = 1, share: float = 1.0) -> Recipe:
        """Of an arm that stops after a share of its bytes, as a study would name it."""
        whole = load_recipe(self._recipe, [*self._shared, *self.arms[arm],
                            f"run.name={arm}-seed{seed}", f"run.seed={seed}",
                            f"run.folder={self.scale.folder / self.name}"])  # fmt: skip
        steps = round(share * whole.run.steps)
        return whole.model_copy(update={"run": whole.run.model_copy(update={"steps": steps})})

    @property
    def _recipe(self) -> str:
        return f"recipes/large_batch_{self.model}.yaml"

    @property
    def _shared(self) -> list[str]:
        """The rate's horizon is that of the whole run, so that an arm stopped early can go on."""
        return [*corpus(), f"optim.decay_tokens={self.scale.total_bytes}", *self.shared]


def corpus() -> list[str]:
    """Overrides that put the embedded reviews in the place of a corpus that is not there."""
    if _CORPUS.is_file():
        return []
    source = f"{{kind: jsonl, path: {_SAMPLE}, text_field: reviewText}}"
    return [f"data.sources=[{source}]", "data.folder=prepared/large_batch_sample"]


def train(recipe: Recipe) -> float:
    """Bits per byte of the validation split at the end of a run; infinite if it diverged."""
    found = _outcome(recipe)
    if found is None:
        log = recipe.run_folder.parent / "arms.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        child = _FORKS.Process(target=_pretrain, args=(recipe, log))
        child.start()
        child.join()
        found = _outcome(recipe)
        if found is None:
            raise RuntimeError(f"{recipe.run.name} ended with {child.exitcode}, see {log}")
        read = recipe.batch.tokens * recipe.run.steps / 2**20
        print(
            f"{log.parent.name:<20} {recipe.run.name:<26} {read:.2f} MiB {found:8.4f}", flush=True
        )
    return found


def _outcome(recipe: Recipe) -> float | None:
    at_end = [bits for step, bits in curve(recipe) if step == recipe.run.steps]
    if at_end:
        return at_end[-1]
    folder = RunFolder(recipe.run_folder)
    status = folder.read_json(folder.status) or {}
    return math.inf if status.get("state") == "diverged" else None


def curve(recipe: Recipe) -> list[tuple[int, float]]:
    """(step, bits per byte of the validation split), infinite where it is no number."""
    folder = RunFolder(recipe.run_folder)
    if not folder.metrics.is_file():
        return []
    lines = [line for line in folder.read_metrics() if _BITS in line]
    return [(line["step"], b if math.isfinite(b := line[_BITS]) else math.inf) for line in lines]


def _pretrain(recipe: Recipe, log: Path) -> None:
    """What the process does: a run, and how much memory it took on top of what it came with."""
    from pipeline.environment import prepare_environment

    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    prepare_environment()
    from pipeline.train.start import pretrain

    before = _resident("VmRSS")
    try:
        pretrain(recipe)
    except Diverged as error:
        print(error, flush=True)
    folder = RunFolder(recipe.run_folder)
    folder.write_json(folder.root / "memory.json", {"grown_bytes": _resident("VmHWM") - before})


def _resident(key: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most so far (VmHWM); 0 if unknown."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = [line for line in lines if line.startswith(key)]
    return 1024 * int(found[0].split()[1]) if found else 0
