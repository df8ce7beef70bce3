"""One run in a few numbers: what runs are compared by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.errors import DataError, RecipeError
from pipeline.report import numbers as show
from pipeline.report.load import Lines, RunData, read_config, read_run
from pipeline.report.quality import Measure, Name, per_token, read_measures
from pipeline.run_folder import RunFolder


@dataclass(frozen=True)
class Summary:
    """What runs are compared by. Bits per byte do not depend on the tokenizer; losses would."""

    name: str
    state: str | None  # how training ended; None where it never said so
    parameters: int | None
    steps: int | None
    planned_steps: int | None
    tokens: int | None
    seconds: float | None
    devices: int | None
    price: float | None  # of a device for an hour
    dense_flops: float | None
    counted_flops: float | None
    bits_per_byte: float | None
    loss: float | None  # nats per token
    measures: Mapping[Name, Measure]
    evaluations: Lines
    audit: Mapping[str, Any] | None
    text: str  # what decides the held-out text: sources, cleaning and split
    stretch: str  # how much of it was read
    tokenizer: str

    @property
    def money_per_second(self) -> float | None:
        """What all devices cost together; None without a price or their number."""
        if self.price is None or self.devices is None:
            return None
        return self.price * self.devices / 3600

    @property
    def money(self) -> float | None:
        """What the training cost, in the currency of the price."""
        rate = self.money_per_second
        return None if rate is None or self.seconds is None else self.seconds * rate

    @property
    def label(self) -> str:
        """The name; that of a run which has not reached its end says so."""
        if self.state == "finished":
            return self.name
        steps = f"{show.count(self.steps)} of {show.count(self.planned_steps)} steps"
        return f"{self.name} (unfinished: {self.state or 'no ending written'}, {steps})"


def read_summary(folder: Path, price: float | None = None) -> Summary:
    """The summary of a run folder; `price` of a device for an hour goes before the recipe's own.

    RecipeError when it is no run, or has not trained yet.
    """
    config = read_config(folder)
    if config is None:
        raise RecipeError(f"{folder} is not a run: it has no config.yaml; give a folder of runs/")
    try:
        run = read_run(folder, config)
    except DataError as error:
        raise RecipeError(f"{folder} cannot be compared: {error}") from None
    return _summary(run, price)


def read_summaries(folders: Sequence[Path], price: float | None = None) -> list[Summary]:
    """Summaries with distinct names: the run's, or the whole path where two share one.

    RecipeError as `read_summary`, or when the price is not above 0.
    """
    if price is not None and not price > 0:
        raise RecipeError(f"--price {price:g}: money for a device and hour must be above 0")
    summaries = [read_summary(folder, price) for folder in folders]
    names = [summary.name for summary in summaries]
    return [
        s if names.count(s.name) == 1 else replace(s, name=str(folder))
        for folder, s in zip(folders, summaries, strict=True)
    ]


def comparable(runs: Sequence[Summary]) -> list[Summary]:
    """The runs; where their tokenizers differ, without measures that are per token."""
    if len({run.tokenizer for run in runs}) == 1:
        return list(runs)
    return [
        replace(run, measures={
            name: measure for name, measure in run.measures.items() if not per_token(name[1])
        })
        for run in runs
    ]  # fmt: skip


def caveats(runs: Sequence[Summary]) -> list[str]:
    """What a reader must know before comparing these runs."""
    notes = []
    if len({run.tokenizer for run in runs}) > 1:
        notes.append("The tokenizers differ: only bits per byte can be compared.")
    if len({run.text for run in runs}) > 1:
        notes.append(
            "The runs read different text or split it differently: "
            "their bits per byte are not of the same held-out text."
        )
    if len({run.stretch for run in runs}) > 1:
        read = "; ".join(f"{run.name} {run.stretch}" for run in runs)
        notes.append(
            f"Bits per byte are not of the same stretch of held-out text (eval.max_tokens): {read}."
        )
    if unfinished := [run.label for run in runs if run.state != "finished"]:
        notes.append(f"Not trained to the end: {'; '.join(unfinished)}.")
    return notes


def row(run: Summary) -> list[str]:
    """The run's line in a table under `HEADER`."""
    return [
        run.name,
        run.state or show.DASH,
        show.count(run.parameters),
        show.count(run.steps),
        show.count(run.tokens),
        show.flops(run.dense_flops),
        show.flops(run.counted_flops),
        show.seconds(run.seconds),
        show.decimal(run.money, 2),
        show.decimal(run.bits_per_byte),
    ]


HEADER = (
    "run", "training", "parameters", "steps", "tokens", "FLOPs dense", "FLOPs counted", "seconds",
    "money", "final bits per byte",
)  # fmt: skip


def _summary(run: RunData, price: float | None) -> Summary:
    fingerprint = run.data.get("tokenizer", {}).get("fingerprint")
    last = run.evaluations[-1] if run.evaluations else {}
    return Summary(
        name=run.name,
        state=run.status.get("state"),
        parameters=run.parameters,
        steps=run.last("step"),
        planned_steps=run.setting("run.steps"),
        tokens=run.last("train/tokens"),
        seconds=run.last("time/train_s"),
        devices=run.environment.get("world_size"),
        price=run.setting("report.device_hour_price") if price is None else price,
        dense_flops=run.last("flops/dense"),
        counted_flops=run.last("flops/counted"),
        bits_per_byte=last.get("eval/bits_per_byte"),
        loss=last.get("eval/loss"),
        measures=read_measures(RunFolder(run.root)),
        evaluations=run.evaluations,
        audit=run.audit,
        text=_key({name: run.setting(f"data.{name}") for name in ("sources", "clean", "split")}),
        stretch=_stretch(run),
        tokenizer=_key(fingerprint or run.setting("tokenizer")),
    )


def _stretch(run: RunData) -> str:
    """How much of the held-out text was read, in words that are the same for the same stretch."""
    most = run.setting("eval.max_tokens")
    splits = [run.data.get("splits", {}).get(name, {}) for name in ("validation", "test")]
    sizes = [split["tokens"] for split in splits if split.get("tokens")]
    if most is None or not sizes or most >= max(sizes) - 1:
        return "all of it"
    of_a_token = max(splits, key=lambda split: split.get("tokens", 0))
    share = of_a_token["bytes"] / of_a_token["tokens"]
    return f"its first {most:,} tokens, about {most * share / 1024:,.0f} KiB"


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
