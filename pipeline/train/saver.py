"""A run made into a checkpoint while it goes on, and put back to one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from torch import Tensor

from data_prep.shards import Prepared
from pipeline.clock import Clock
from pipeline.protocols import Engine, StepPlugin
from pipeline.ranks import agree, barrier, from_rank0, gather_objects, rank
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.train import checkpoint, piece_files, state
from pipeline.train.health import Health
from pipeline.train.lanes import LaneStates
from pipeline.train.meters import Meters
from pipeline.train.module import TrainModule
from pipeline.train.monitor import Monitor
from pipeline.train.watchdog import Watchdog


class SavedRun(Protocol):
    """What a checkpoint is made of: `pipeline.train.run.TrainingRun`, which makes a saver."""

    recipe: Recipe
    folder: RunFolder
    prepared: Prepared
    module: TrainModule
    engine: Engine
    plugins: list[StepPlugin]
    clock: Clock
    meters: Meters
    lanes: LaneStates
    health: Health
    skip: list[tuple[int, int]]
    dtype: str
    monitor: Monitor
    watchdog: Watchdog

    @property
    def layout(self) -> dict[str, Any]: ...


class Saver:
    """One save at a time: `save` begins it, `finish` publishes it."""

    def __init__(self, run: SavedRun) -> None:
        self._run = run
        self._saving: checkpoint.Saving | None = None
        self._saved_at = 0  # instances, of the save under way
        self._paused_s = 0.0
        self.all_written = False  # on every rank, as they have agreed
        self._resumed_from: str | None = None  # the checkpoint that `run.resume` has named

    @property
    def writing(self) -> bool:
        """Whether this rank has files left to write."""
        return self._saving is not None and not self._saving.written

    def save(self) -> None:
        """Begin checkpoint `global_step{applied}`, and finish the one before. Collective."""
        self.finish()
        run, began = self._run, perf_counter()
        run.watchdog.beat("saving a checkpoint")
        checkpoints, tag = run.folder.checkpoints, checkpoint.tag_of(run.clock.applied)
        if from_rank0(lambda: self._is_saved(checkpoints / tag)):
            return
        background = run.recipe.checkpoint.background
        taken = run.engine.snapshot(copy=background)
        size = sum(gather_objects(sum(t.nbytes for t in taken.tensors.values())))
        folder = checkpoint.begin(checkpoints, tag, size)
        agree(lambda: state.save_rng(folder / "rng"))
        tensors = {"lanes": run.lanes.gather(), "head": run.module.head.plugin_state()}
        tensors |= {plugin.name: plugin.plugin_state() for plugin in run.plugins}
        from_rank0(lambda: self._write_small(folder, tensors))
        number = rank()
        self._saving = checkpoint.Saving(
            checkpoints, tag, lambda: piece_files.write(taken, folder, number)
        )
        self._saved_at = run.clock.instances
        self.all_written = False
        self._paused_s = perf_counter() - began
        if not background:
            self.finish()

    def finish(self) -> None:
        """Wait for the save under way, if there is one, and publish it. Collective."""
        if self._saving is None:
            return
        run, began = self._run, perf_counter()
        run.watchdog.beat("waiting for a checkpoint to be written")
        saving, self._saving = self._saving, None
        saving.commit(run.recipe.checkpoint)
        run.health.saved_at = self._saved_at
        paused_s = self._paused_s + perf_counter() - began
        run.monitor.say(f"saved {saving.checkpoint}, training paused {paused_s:.2f} s")

    def finish_if_written(self) -> None:
        """Publish the save under way once no rank has anything left to write. Collective."""
        if self.all_written:
            self.finish()

    def _is_saved(self, target: Path) -> bool:
        """This very position is already safe; an equal number of applied steps is not enough."""
        if checkpoint.problem(target, verify=False) is not None:
            return False
        return bool(state.read_trainer(target)["clock"] == self._run.clock.to_dict())

    def _write_small(self, folder: Path, tensors: dict[str, dict[str, Tensor]]) -> None:
        run = self._run
        for name, content in tensors.items():
            if content:
                state.save_tensors(folder / "plugins" / f"{name}.safetensors", content)
        state.write_trainer(
            folder,
            {
                "format": state.FORMAT,
                "clock": run.clock.to_dict(),
                "meters": asdict(run.meters),
                "skip_instances": run.skip,
                "health": run.health.state(),
                "resumed_from": self._resumed_from,
                **run.layout,
                "tokenizer_fingerprint": run.prepared.tokenizer_fingerprint,
                "data_fingerprint": run.prepared.fingerprint,
                "identity": state.identity(run.recipe, run.prepared, run.dtype),
            },
        )

    def restore(self, folder: Path) -> None:
        """Put the run where it was when this checkpoint was saved. Collective."""
        run, trainer = self._run, agree(lambda: state.read_trainer(folder))
        resume = run.recipe.run.resume
        told = resume not in ("auto", "must")
        self._resumed_from = str(Path(resume).resolve()) if told else trainer.get("resumed_from")
        run.engine.restore(agree(lambda: piece_files.SavedPieces.open(folder)))
        run.clock = Clock(**trainer["clock"])
        run.meters = Meters(**trainer["meters"])
        run.skip = sorted({*run.skip, *((first, end) for first, end in trainer["skip_instances"])})
        run.health.load_state(trainer["health"], run.clock.instances)
        run.lanes.load(_plugin(folder, "lanes"))
        run.module.head.load_plugin_state(_plugin(folder, "head"))
        for plugin in run.plugins:
            plugin.load_plugin_state(_plugin(folder, plugin.name))
        state.load_rng(folder / "rng")
        barrier()


def _plugin(folder: Path, name: str) -> dict[str, Tensor]:
    return state.load_tensors(folder / "plugins" / f"{name}.safetensors")
