"""The sentence that compares a run with the base, for a reader who knows no language models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from pipeline.report.document import Block, Paragraph, Table
from pipeline.report.quality import (
    Judgement,
    Measure,
    Name,
    is_share,
    judge,
    sign,
    smaller_is_better,
    written,
)
from pipeline.report.summary import Summary

RULE = (
    "The same means: within chance. Where both runs answered the same examples, the 95 % limits of "
    "their paired difference (1,000 resamples) hold zero; elsewhere the two 95 % intervals overlap."
)
SEEDS_RULE = (
    "The same means: within the spread of the seeds, the 95 % interval of the difference of the "
    "means (Welch) holds zero. It needs two seeds of both arms."
)
_BY = {"bits": "bits per byte", "loss": "loss per token"}
_FIRST = ("accuracy", "acc_norm", "acc")  # what a task is named by, where it has several


def verdict(run: Summary, base: Summary, by: str = "bits") -> str:
    """`B: 0.26x FLOPs, 0.61x hours, +0.8 % bits per byte, same sentiment accuracy within ...`"""
    clauses = cost_clauses([run], [base])
    ours, theirs = _measured(run, by), _measured(base, by)
    if ours is not None and theirs:
        clauses.append(f"{100 * (ours / theirs - 1):+.1f} % {_BY[by]}")
    clauses += task_clauses(judgements(run.measures, base.measures), "the interval")
    return f"{run.label}: {', '.join(clauses) or 'nothing that both runs have measured'}"


def arm_verdict(
    arm: str, runs: Sequence[Summary], base: Sequence[Summary], by: str = "bits"
) -> str:
    """The same sentence for an arm of a study beside the first one: means over seeds."""
    clauses = cost_clauses(runs, base)
    ours, theirs = (_known(group, by) for group in (runs, base))
    if ours and theirs:
        clause = f"{100 * (fmean(ours) / fmean(theirs) - 1):+.1f} % {_BY[by]}"
        judged = judge_seeds(ours, theirs, "loss")
        if judged is not None and judged.word == "same":
            clause += " (the same within the spread of the seeds)"
        clauses.append(clause)
    found = {}
    for name in _shared(runs, base):
        ours, theirs = ([run.measures[name].value for run in group] for group in (runs, base))
        judged = judge_seeds(ours, theirs, name[1])
        if judged is not None:
            found[name] = judged
    clauses += task_clauses(_one_a_task(found), "the spread of the seeds")
    return f"{arm}: {', '.join(clauses) or 'nothing that both arms have measured'}"


def judge_seeds(ours: Sequence[float], theirs: Sequence[float], metric: str) -> Judgement | None:
    """Same where Welch's 95 % interval of the difference of means holds zero; None below two
    seeds on either side."""
    if min(len(ours), len(theirs)) < 2:
        return None
    from scipy.stats import ttest_ind  # a second to import, for studies alone

    difference = fmean(ours) - fmean(theirs)
    if len(set(ours)) == len(set(theirs)) == 1:  # no spread at all, which the test cannot divide by
        return Judgement("same" if not difference else sign(difference, metric), difference, None)
    limits = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    same = limits.low <= 0 <= limits.high
    return Judgement("same" if same else sign(difference, metric), difference, None)


def judgements(
    measures: Mapping[Name, Measure], base: Mapping[Name, Measure]
) -> dict[Name, Judgement]:
    """One judged metric of each task that both have measured."""
    found = {}
    for name in measures:
        judged = judge(measures[name], base[name], name[1]) if name in base else None
        if judged is not None:
            found[name] = judged
    return _one_a_task(found)


def task_clauses(found: Mapping[Name, Judgement], within: str) -> list[str]:
    """`same sst and imdb accuracy within the interval`, `worse lambada accuracy (-2.1 points)`."""
    same: dict[str, list[str]] = {}
    for (task, metric), judged in found.items():
        if judged.word == "same":
            same.setdefault(metric.replace("_", " "), []).append(task)
    clauses = [f"same {_listed(tasks)} {metric} within {within}" for metric, tasks in same.items()]
    for (task, metric), judged in found.items():
        if judged.word != "same":
            amount = _amount(judged, metric)
            clauses.append(f"{judged.word} {task} {metric.replace('_', ' ')} ({amount})")
    return clauses


def cost_clauses(runs: Sequence[Summary], base: Sequence[Summary]) -> list[str]:
    """`0.26x FLOPs, 0.61x hours, 0.61x money`: ratios of the means of what all have measured."""
    what = (("counted_flops", "FLOPs"), ("seconds", "hours"), ("money", "money"))
    clauses = []
    for attribute, unit in what:
        ours = [getattr(run, attribute) for run in runs]
        theirs = [getattr(run, attribute) for run in base]
        if None not in ours + theirs and sum(theirs):
            clauses.append(f"{fmean(ours) / fmean(theirs):.2f}x {unit}")
    return clauses


def quality_blocks(runs: Sequence[Summary]) -> list[Block]:
    """Every measure of every run in one table, and the rule by which they are the same."""
    names = list(dict.fromkeys(name for run in runs for name in run.measures))
    rows = [
        [task, metric.replace("_", " "), "less" if smaller_is_better(metric) else "more",
         *(written(run.measures.get((task, metric)), metric) for run in runs)]
        for task, metric in names
    ]  # fmt: skip
    if not rows:
        return []
    header = ["task", "metric", "better is", *(run.name for run in runs)]
    return [Table(header, rows, words=3), Paragraph(RULE)]


def _measured(run: Summary, by: str) -> float | None:
    return run.loss if by == "loss" else run.bits_per_byte


def _known(runs: Sequence[Summary], by: str) -> list[float]:
    found = [_measured(run, by) for run in runs]
    return [value for value in found if value is not None]


def _shared(runs: Sequence[Summary], base: Sequence[Summary]) -> list[Name]:
    return [
        name for name in base[0].measures if all(name in run.measures for run in [*runs, *base])
    ]


def _one_a_task(found: Mapping[Name, Judgement]) -> dict[Name, Judgement]:
    chosen: dict[str, Name] = {}
    for task, metric in sorted(found, key=lambda name: name[1] not in _FIRST):
        chosen.setdefault(task, (task, metric))
    return {name: found[name] for name in found if name in chosen.values()}


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _amount(judged: Judgement, metric: str) -> str:
    if not is_share(metric):
        return f"{judged.difference:+.3g}"
    limits = judged.paired
    bounds = f" [{100 * limits[0]:+.1f}, {100 * limits[1]:+.1f}]" if limits else ""
    return f"{100 * judged.difference:+.1f} points{bounds}"
