"""The layout of a run folder, in one place.

runs/NAME/
  config.yaml  ds_config.json       the resolved recipe and the DeepSpeed JSON made from it
  command.txt  env.json             how and where it ran
  metrics.jsonl  tb/                one JSON object a line; TensorBoard beside it
  metrics.csv  wandb/               where run.loggers asks for them
  logs/  skip_instances.json        see docs/reliability.md
  lock  position                    whose the folder is, and which step was begun last
  status.json                       state, step and reason; written last
  checkpoints/global_stepN/ latest  see docs/resume.md
  export/  evals/  finetune/        what later stages made
  stages/STAGE.json                 the manifest of each finished stage
  report.html  report.md
  superseded/                       outputs of stages that were run again with another recipe
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.manifest import write_atomic


@dataclass(frozen=True)
class StageOutput:
    """What a stage made: files or folders whose change makes it run again, and numbers.

    `belongs` is everything that moves aside when the stage is superseded; None means the outputs.
    """

    outputs: list[Path]
    counts: dict[str, Any] = field(default_factory=dict)
    belongs: list[Path] | None = None


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def evals(self) -> Path:
        return self.root / "evals"

    @property
    def finetune_metrics(self) -> Path:
        """Of the last fine-tuning, wherever its recipe has put it."""
        manifest = self.read_json(self.stages / "finetune.json") or {}
        files = [Path(entry["path"]) for entry in manifest.get("outputs", [])]
        found = [self.stages / file for file in files if file.name == "metrics.json"]
        return found[0] if found else self.root / "finetune" / "metrics.json"

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def logs(self) -> Path:
        """What ranks say when they hang or diverge, and their hearts while they run."""
        return self.root / "logs"

    @property
    def skip_instances(self) -> Path:
        """Ranges of instances that rollbacks have added to `batch.skip_instances`."""
        return self.root / "skip_instances.json"

    @property
    def stop_file(self) -> Path:
        """Creating this file asks a training run to stop and save."""
        return self.root / "STOP"

    @property
    def position(self) -> Path:
        """Where training is, rewritten before every step."""
        return self.root / "position"

    def read_position(self) -> tuple[int, int, int] | None:
        """(applied steps, first instance, instance after the last) of the step that was begun last;
        None before the first."""
        try:
            step, first, end = self.position.read_text("ascii").split()
            return int(step), int(first), int(end)
        except (FileNotFoundError, ValueError):
            return None

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Lines of metrics.jsonl in order; a half-written last line is left out."""
        if not self.metrics.is_file():
            return
        with self.metrics.open(encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield json.loads(line)

    def write_json(self, path: Path, content: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return path

    def read_json(self, path: Path) -> Any | None:
        """The content of a JSON file of the run, or None when there is none."""
        return json.loads(path.read_text("utf-8")) if path.is_file() else None
