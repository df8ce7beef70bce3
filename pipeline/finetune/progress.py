"""Where a fine-tuning stands, on disk: its state, and the best model so far.

    FOLDER.tmp/settings.json      what was asked for, of which model and texts
    FOLDER.tmp/progress.json      the step, and which of the folders beside it count; written last
    FOLDER.tmp/state-N/           weights and optimizer, as `accelerate` saves them
    FOLDER.tmp/best-N/            weights and configuration of the best model

A kill between two writes leaves the folders that the older progress.json names.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data_prep.errors import RecipeError
from data_prep.manifest import read_manifest, write_atomic
from pipeline.ranks import barrier, from_rank0


@dataclass
class Progress:
    """After `step` updates. `best` is the best value of the metric, seen after `best_step`."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    waited: int = 0  # looks since then
    early: bool = False  # nothing got better for long enough
    loss_sum: float = 0.0  # of training steps since the last look, nats
    history: list[dict[str, Any]] = field(default_factory=list)


class Keeper:
    """Saves and restores. All methods are collective."""

    def __init__(
        self, folder: Path, settings: dict[str, Any], accelerator: Accelerator, model: Any
    ) -> None:
        self.folder = folder
        self._settings = settings
        self._accelerator, self._model = accelerator, model

    def restore(self) -> Progress:
        """Where an earlier start of the same fine-tuning came to. Collective.

        RecipeError when the folder is of another one.
        """
        found = from_rank0(self._open)
        if found is None:
            return Progress()
        progress = Progress(**found)
        self._accelerator.load_state(str(self.folder / f"state-{progress.step}"))
        return progress

    def save(self, progress: Progress) -> None:
        """State first, then the file that counts, then what no longer does. Collective."""
        self._accelerator.save_state(str(self.folder / f"state-{progress.step}"))
        barrier()
        from_rank0(lambda: self._commit(progress))

    def keep_best(self, progress: Progress) -> None:
        """Write the model as a folder that loads. Collective."""
        whole = self._accelerator.get_state_dict(self._model)
        from_rank0(lambda: self._write_best(progress.best_step, whole))

    def best(self, progress: Progress) -> Path:
        """The folder of the best model."""
        return self.folder / f"best-{progress.best_step}"

    def _open(self) -> dict[str, Any] | None:
        place = self.folder / "settings.json"
        if self.folder.exists():
            check_settings(self.folder, place, self._settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(place, json.dumps(self._settings, indent=1) + "\n")
        place = self.folder / "progress.json"
        return read_manifest(place) if place.is_file() else None

    def _commit(self, progress: Progress) -> None:
        write_atomic(self.folder / "progress.json", json.dumps(asdict(progress), indent=1) + "\n")
        counts = {f"state-{progress.step}", f"best-{progress.best_step}"}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in counts:
                shutil.rmtree(path)

    def _write_best(self, step: int, whole: dict[str, Any]) -> None:
        folder = self.folder / f"best-{step}"
        shutil.rmtree(folder, ignore_errors=True)  # of a start that was killed before its save
        model = self._accelerator.unwrap_model(self._model)
        model.save_pretrained(folder, state_dict=whole)


def check_settings(folder: Path, place: Path, settings: dict[str, Any]) -> None:
    """RecipeError when what lies in a folder is no fine-tuning, or one of other settings."""
    hint = "nothing is overwritten: move it away or set finetune.folder"
    if not place.is_file():
        raise RecipeError(f"{folder} exists and holds no fine-tuning; {hint}")
    found = read_manifest(place)
    found = found.get("settings", found)
    if other := sorted(k for k in {*found, *settings} if found.get(k) != settings.get(k)):
        raise RecipeError(
            f"{folder} is of other settings ({', '.join(other)}: {found.get(other[0])!r} there, "
            f"{settings.get(other[0])!r} now); {hint}"
        )
