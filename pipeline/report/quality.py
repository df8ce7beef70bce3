"""How good a run is on each task: measures with intervals, read from whatever lies in its evals/.

A result is understood by its form, so that a new evaluation needs no word here: a number under a
known name with an interval beside it, or `{"value": ..., "low": ..., "high": ...}` under any name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report import numbers as show
from pipeline.run_folder import RunFolder

# Texts and tables of their own, not measures of quality.
_OTHERS = ("samples", "audit")
_SHARES = ("accuracy", "accuracy_normalised", "acc", "acc_norm", "macro_f1", "f1", "auroc",
           "top1")  # fmt: skip
_KNOWN_GAINS = (*_SHARES, "mcc")
_COSTS = ("bits_per_byte", "bits_per_character", "ppl_per_word", "ppl_per_token", "perplexity",
          "ppl", "word_perplexity", "byte_perplexity")  # fmt: skip
_RESAMPLES = 1000
_LEVEL = 0.95

Name = tuple[str, str]  # task, metric


@dataclass(frozen=True)
class Measure:
    """A metric of a task, its 95 % limits where they were measured, and its single outcomes.

    `correct` is a string of 0 and 1, one an example; `examples` says of which texts.
    """

    value: float
    low: float | None = None
    high: float | None = None
    correct: str | None = None
    examples: str | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Judgement:
    """A run beside the base on one measure: `same`, `better` or `worse`, and by how much."""

    word: str
    difference: float
    paired: tuple[float, float] | None  # limits of the difference where examples were paired


def read_measures(run: RunFolder) -> dict[Name, Measure]:
    """Every measure of a run's evals/*.json and of its fine-tuned classifier, by task and metric.

    A task of two files of results keeps both, the second under FILE/TASK.
    """
    files = [path for path in sorted(run.evals.glob("*.json")) if path.stem not in _OTHERS]
    found: dict[Name, Measure] = {}
    for path in [*files, run.finetune_metrics]:
        stem = "finetune" if path == run.finetune_metrics else path.stem
        for (task, metric), measure in _measures(run.read_json(path), stem):
            name = (task, metric) if (task, metric) not in found else (f"{stem}/{task}", metric)
            found[name] = measure
    return found


def smaller_is_better(metric: str) -> bool:
    """True of code lengths, perplexities and losses."""
    return metric in _COSTS or metric.startswith(("bits", "ppl", "nats", "loss"))


def per_token(metric: str) -> bool:
    """True of metrics that mean something else under another tokenizer."""
    return metric.startswith(("top1", "nats", "loss")) or metric in (
        "ppl_per_token", "ppl", "perplexity"
    )  # fmt: skip


def judge(run: Measure, base: Measure, metric: str) -> Judgement | None:
    """The rule for `same`: the 95 % limits of the paired difference hold zero, where both runs
    answered the same examples; else the two intervals overlap. None without either."""
    difference = run.value - base.value
    limits = _paired(run, base)
    if limits is not None:
        same = limits[0] <= 0 <= limits[1]
    elif run.interval and base.interval:
        same = run.interval[0] <= base.interval[1] and base.interval[0] <= run.interval[1]
    else:
        return None
    return Judgement("same" if same else sign(difference, metric), difference, limits)


def sign(difference: float, metric: str) -> str:
    """`better` or `worse` for a difference from the base."""
    return "better" if (difference > 0) != smaller_is_better(metric) else "worse"


def written(measure: Measure | None, metric: str) -> str:
    """`71.2 % [68.0, 74.1]` of a share, `432.1 [401.0, 470.2]` of anything else."""
    if measure is None:
        return show.DASH
    if is_share(metric):
        return show.with_interval(measure.value, measure.interval)
    limits = measure.interval
    text = show.decimal(measure.value)
    return text if limits is None else f"{text} [{limits[0]:,.3f}, {limits[1]:,.3f}]"


def is_share(metric: str) -> bool:
    """True of metrics that are shares of 1 and read better as percent."""
    return metric in _SHARES


def ratio_limits(values: np.ndarray, base: np.ndarray) -> tuple[float, float, float]:
    """sum(values) / sum(base) - 1 over documents that both runs read, (n,) each, and its 95 %
    limits from drawing the documents again."""
    chosen = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    drawn = values[chosen].sum(axis=1) / base[chosen].sum(axis=1) - 1
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(values.sum() / base.sum() - 1), float(low), float(high)


def _paired(run: Measure, base: Measure) -> tuple[float, float] | None:
    """95 % limits of the difference in accuracy over examples that both answered."""
    if not run.correct or not base.correct or run.examples != base.examples:
        return None
    if len(run.correct) != len(base.correct):
        return None
    pairs = zip(run.correct, base.correct, strict=True)
    differences = np.array([int(ours) - int(theirs) for ours, theirs in pairs])
    # Differences are -1, 0 or 1: drawing n of them again is drawing how many there are of each.
    shares = np.array([(differences == value).mean() for value in (-1, 0, 1)])
    counts = np.random.default_rng(0).multinomial(len(differences), shares, _RESAMPLES)
    means = (counts[:, 2] - counts[:, 0]) / len(differences)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _measures(content: Any, task: str) -> Iterator[tuple[Name, Measure]]:
    """The measures at and below a JSON value; keys that hold others are names of tasks, and in a
    list each entry names its own."""
    if isinstance(content, list):
        for entry in content:
            if isinstance(entry, Mapping) and "task" in entry:
                yield from _measures(entry, f"{entry['task']} ({entry.get('shots', 0)} shots)")
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if isinstance(value, Mapping):
            if show.known(value.get("value")):
                yield (task, key), _measure(key, value["value"], value, _limits(value))
            else:
                yield from _measures(value, key)
        elif key in _KNOWN_GAINS + _COSTS and show.known(value):
            limits = content.get(f"{key}_interval") or _own_interval(content, key)
            yield (task, key), _measure(key, value, content, limits)


def _measure(
    metric: str, value: float, beside: Mapping[str, Any], limits: Sequence[float] | None
) -> Measure:
    low, high = limits or (None, None)
    if metric != "accuracy":
        return Measure(value, low, high)
    examples = beside.get("examples")  # a task has their number here, which says nothing of them
    examples = examples if isinstance(examples, str) else None
    return Measure(value, low, high, beside.get("correct"), examples)


def _limits(content: Mapping[str, Any]) -> Sequence[float] | None:
    if show.known(content.get("low")) and show.known(content.get("high")):
        return (content["low"], content["high"])
    return content.get("interval")


def _own_interval(content: Mapping[str, Any], key: str) -> Sequence[float] | None:
    """`interval` is that of `accuracy`, `interval_normalised` that of `accuracy_normalised`, and
    `intervals` holds those of any."""
    name = key.replace("accuracy", "interval", 1)
    own = content.get(name) if name != key else None
    return own or content.get("intervals", {}).get(key)
