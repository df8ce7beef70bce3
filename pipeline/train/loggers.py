"""Where metrics go besides metrics.jsonl: TensorBoard always, CSV and Weights & Biases by key.

metrics.jsonl is the record; what is here can be made again from it.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import yaml

from data_prep.errors import RecipeError
from data_prep.manifest import write_atomic
from pipeline.run_folder import RunFolder


class Logger(Protocol):
    """Takes every line of metrics.jsonl after it has been written."""

    def log(self, line: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def check_loggers(names: Sequence[str]) -> None:
    """RecipeError where a library is missing that `run.loggers` needs."""
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise RecipeError(
            "run.loggers names wandb, which is not installed: pip install wandb, or take it out "
            "of run.loggers"
        )


def open_loggers(names: Sequence[str], folder: RunFolder, first_step: int) -> list[Logger]:
    """TensorBoard and those of `names`; what they hold from `first_step` on is written again."""
    makers: dict[str, Callable[[RunFolder], Logger]] = {"csv": Csv, "wandb": Wandb}
    chosen = [makers[name](folder) for name in dict.fromkeys(names)]
    return [TensorBoard(folder, first_step), *chosen]


class TensorBoard:
    """Event files in tb/."""

    def __init__(self, folder: RunFolder, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder.root / "tb", purge_step=first_step)

    def log(self, line: Mapping[str, Any]) -> None:
        for key, value in _metrics(line).items():
            self._writer.add_scalar(key, value, line["step"])

    def close(self) -> None:
        self._writer.close()


class Csv:
    """metrics.csv: a row a line, a column a metric, empty where a line lacks it.

    A metric that appears late needs a column in every row: then, and at the start, the file is
    made from metrics.jsonl, so that a resume leaves no second header and no row past its
    checkpoint.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._path = folder.root / "metrics.csv"
        self._columns: dict[str, None] = {}  # in order of appearance
        self._write_all()

    def _write_all(self) -> None:
        lines = list(self._folder.read_metrics())
        self._columns = dict.fromkeys(key for line in lines for key in line)
        text = io.StringIO()
        rows = csv.DictWriter(text, self._columns, lineterminator="\n")
        rows.writeheader()
        rows.writerows(lines)
        write_atomic(self._path, text.getvalue())
        self._file = self._path.open("a", newline="", encoding="utf-8")
        self._rows = csv.DictWriter(self._file, self._columns, lineterminator="\n")

    def log(self, line: Mapping[str, Any]) -> None:
        if not line.keys() <= self._columns.keys():
            self._file.close()
            self._write_all()
            return
        self._rows.writerow(line)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Wandb:
    """A run at Weights & Biases; project, mode and key come from its own variables (WANDB_*).

    The run's id lies in wandb/id.json, so that a resumed run goes on there. Steps that it takes
    again are drawn twice: W&B cannot take points back.
    """

    def __init__(self, folder: RunFolder) -> None:
        import wandb

        place = folder.root / "wandb" / "id.json"
        if not place.is_file():
            folder.write_json(place, secrets.token_hex(8))
        config = yaml.safe_load(folder.config.read_text("utf-8")) if folder.config.is_file() else {}
        try:
            self._run = wandb.init(
                name=folder.name, id=json.loads(place.read_text("utf-8")), resume="allow",
                dir=str(folder.root), config=config,
            )  # fmt: skip
        except Exception as error:  # of many kinds: no key, no network, no such project
            raise RecipeError(
                f"run.loggers: W&B did not start ({_without_key(error)}): run `wandb login`, set "
                "WANDB_MODE=offline, or take wandb out of run.loggers"
            ) from None
        self._run.define_metric("*", step_metric="step")

    def log(self, line: Mapping[str, Any]) -> None:
        self._run.log({"step": line["step"], **_metrics(line)})

    def close(self) -> None:
        self._run.finish()


def _without_key(error: Exception) -> str:
    key = os.environ.get("WANDB_API_KEY")
    return str(error).replace(key, "***") if key else str(error)


def _metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """The `group/name` entries of a line, without those that say where it was written."""
    return {key: value for key, value in line.items() if "/" in key}
