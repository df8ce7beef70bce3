"""One run in a few numbers, and the sentence that compares it with another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import DataError, RecipeError
from pipeline.report import numbers as show
from pipeline.report.load import Lines, RunData, read_config, read_run


@dataclass(frozen=True)
class Summary:
    """What runs are compared by. Bits per byte do not depend on the tokenizer; losses would."""

    name: str
    parameters: int | None
    steps: int | None
    tokens: int | None
    seconds: float | None
    dense_flops: float | None
    counted_flops: float | None
    bits_per_byte: float | None
    sentiment: float | None
    sentiment_interval: Sequence[float] | None
    evaluations: Lines
    text: str  # what decides the held-out text: sources, cleaning and split
    tokenizer: str


def read_summary(folder: Path) -> Summary:
    """The summary of a run folder. RecipeError when it is none, or has not trained yet."""
    config = read_config(folder)
    if config is None:
        raise RecipeError(f"{folder} is not a run: it has no config.yaml; give a folder of runs/")
    try:
        run = read_run(folder, config)
    except DataError as error:
        raise RecipeError(f"{folder} cannot be compared: {error}") from None
    return _summary(run)


def read_summaries(folders: Sequence[Path]) -> list[Summary]:
    """Summaries with distinct names: the run's, or the whole path where two share one."""
    summaries = [read_summary(folder) for folder in folders]
    names = [summary.name for summary in summaries]
    return [
        s if names.count(s.name) == 1 else Summary(**{**vars(s), "name": str(folder)})
        for folder, s in zip(folders, summaries, strict=True)
    ]


def verdict(run: Summary, first: Summary) -> str:
    """`B: 0.26x FLOPs, 0.61x seconds, +0.8 % bits per byte, sentiment accuracy within ...`"""
    clauses = [
        _times(run.counted_flops, first.counted_flops, "FLOPs"),
        _times(run.seconds, first.seconds, "seconds"),
    ]
    if run.bits_per_byte is not None and first.bits_per_byte:
        change = 100 * (run.bits_per_byte / first.bits_per_byte - 1)
        clauses.append(f"{change:+.1f} % bits per byte")
    if run.sentiment is not None and first.sentiment_interval:
        low, high = first.sentiment_interval
        place = "above" if run.sentiment > high else "below" if run.sentiment < low else "within"
        clauses.append(f"sentiment accuracy {place} the interval of {first.name}")
    found = ", ".join(clause for clause in clauses if clause)
    return f"{run.name}: {found or 'nothing that both runs have measured'}"


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
    return notes


def row(run: Summary) -> list[str]:
    """The run's line in a table under `HEADER`."""
    return [
        run.name,
        show.count(run.parameters),
        show.count(run.steps),
        show.count(run.tokens),
        show.flops(run.dense_flops),
        show.flops(run.counted_flops),
        show.seconds(run.seconds),
        show.decimal(run.bits_per_byte),
        show.with_interval(run.sentiment, run.sentiment_interval),
    ]


HEADER = (
    "run", "parameters", "steps", "tokens", "FLOPs dense", "FLOPs counted", "seconds",
    "final bits per byte", "sentiment accuracy",
)  # fmt: skip


def _summary(run: RunData) -> Summary:
    sentiment = run.sentiment or {}
    fingerprint = run.data.get("tokenizer", {}).get("fingerprint")
    return Summary(
        name=run.name,
        parameters=run.parameters,
        steps=run.last("step"),
        tokens=run.last("train/tokens"),
        seconds=run.last("time/train_s"),
        dense_flops=run.last("flops/dense"),
        counted_flops=run.last("flops/counted"),
        bits_per_byte=run.evaluations[-1].get("eval/bits_per_byte") if run.evaluations else None,
        sentiment=sentiment.get("accuracy"),
        sentiment_interval=sentiment.get("interval"),
        evaluations=run.evaluations,
        text=_key({name: run.setting(f"data.{name}") for name in ("sources", "clean", "split")}),
        tokenizer=_key(fingerprint or run.setting("tokenizer")),
    )


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _times(value: float | None, base: float | None, unit: str) -> str:
    return f"{value / base:.2f}x {unit}" if value is not None and base else ""
