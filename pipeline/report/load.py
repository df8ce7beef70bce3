"""Everything that a report shows, read from a run folder into one value.

Only the recipe and a line of training metrics must be there. Evaluations, samples and manifests
are made by later stages and may be absent; the report then leaves their part out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_prep.errors import DataError
from pipeline.run_folder import RunFolder

Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class RunData:
    """A run as it lies on disk. Absent files are empty values or None."""

    root: Path
    config: dict[str, Any]
    training: Lines  # metrics lines with train/loss
    evaluations: Lines  # metrics lines with eval/loss
    environment: dict[str, Any]
    status: dict[str, Any]
    deepspeed: dict[str, Any]
    command: str
    stages: dict[str, dict[str, Any]]
    data: dict[str, Any]  # manifest of the prepared folder
    heldout: dict[str, Any] | None
    sentiment: dict[str, Any] | None
    transfer: dict[str, dict[str, Any]]
    last_word: dict[str, dict[str, Any]]
    texts: dict[str, dict[str, Any]]
    tasks: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    finetune: dict[str, Any] | None
    audit: dict[str, Any] | None

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def parameters(self) -> int | None:
        return self.stages.get("pretrain", {}).get("counts", {}).get("parameters")

    def setting(self, dotted: str) -> Any | None:
        """A value of the recipe such as `batch.global_batch`; None when it has no such key."""
        value: Any = self.config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def last(self, key: str) -> Any | None:
        """The newest value of a metric."""
        with_key = [lines[-1] for lines in (self.training, self.evaluations) if lines]
        values = [(line["step"], line[key]) for line in with_key if key in line]
        return max(values, key=lambda pair: pair[0])[1] if values else None

    def unigram(self, split: str) -> float | None:
        """Bits per byte that byte frequencies of the training text alone need on a split."""
        return self.data.get("splits", {}).get(split, {}).get("unigram_bits_per_byte")


def column(lines: Lines, key: str) -> np.ndarray:
    """One metric of all lines as float64; NaN where a line lacks it."""
    return np.array([line.get(key) for line in lines], dtype=np.float64)


def read_config(folder: Path) -> dict[str, Any] | None:
    """The resolved recipe of a run folder as plain values, None when there is none."""
    path = RunFolder(folder).config
    return yaml.safe_load(path.read_text("utf-8")) if path.is_file() else None


def read_run(folder: Path, config: dict[str, Any]) -> RunData:
    """The run in `folder`, trained with `config`. DataError when it has not trained yet."""
    run = RunFolder(folder)
    training, evaluations = _metrics(run)
    if not training:
        raise DataError(
            f"{run.metrics} has no line of training to report: "
            "run `python -m pipeline pretrain RECIPE` first"
        )
    read = run.read_json
    command = folder / "command.txt"
    return RunData(
        root=folder,
        config=config,
        training=training,
        evaluations=evaluations,
        environment=read(folder / "env.json") or {},
        status=read(run.status) or {},
        deepspeed=read(folder / "ds_config.json") or {},
        command=command.read_text("utf-8").strip() if command.is_file() else "",
        stages={path.stem: read(path) or {} for path in sorted(run.stages.glob("*.json"))},
        data=read(Path(config["data"]["folder"]) / "manifest.json") or {},
        heldout=read(run.evals / "heldout.json"),
        sentiment=read(run.evals / "sentiment.json"),
        transfer=read(run.evals / "transfer.json") or {},
        last_word=read(run.evals / "last_word.json") or {},
        texts=read(run.evals / "texts.json") or {},
        tasks=read(run.evals / "tasks.json") or [],
        samples=read(run.evals / "samples.json") or [],
        finetune=read(run.finetune_metrics),
        audit=read(run.evals / "audit.json"),
    )


def _metrics(run: RunFolder) -> tuple[Lines, Lines]:
    """The lines of training and of evaluation that count.

    A run resumed from a checkpoint repeats what came after it: the later line holds.
    """
    training: Lines = []
    evaluations: Lines = []
    try:
        for line in run.read_metrics():
            if "train/loss" in line:
                _append(training, line, "iteration")
            if "eval/loss" in line:
                _append(evaluations, line, "step")
    except ValueError as error:
        raise DataError(
            f"{run.metrics}: a line is not JSON ({error}): remove that line, or train again"
        ) from None
    return training, evaluations


def _append(lines: Lines, line: dict[str, Any], position: str) -> None:
    while lines and lines[-1][position] >= line[position]:
        lines.pop()
    lines.append(line)
