"""A run as a document: every section of the report, in the order it is read."""

from __future__ import annotations

from typing import Any
from unicodedata import category

import numpy as np

from pipeline.report import numbers as show
from pipeline.report.audit import audit_sections
from pipeline.report.curves import run_pictures
from pipeline.report.document import Block, Code, Document, Paragraph, Sample, Section, Table
from pipeline.report.headline import headline
from pipeline.report.load import Lines, RunData, column
from pipeline.report.sparsity import sparsity_section
from pipeline.report.subject import data_section, model_section
from pipeline.report.tasks import tasks_section, texts_section
from pipeline.report.transfer import transfer_section

# Metrics that the report shows elsewhere; what a plug-in adds gets a table of its own.
_SHOWN = ("train/", "batch/", "perf/", "mem/", "flops/", "time/", "eval/")


def compose(run: RunData, title: str, max_points: int) -> Document:
    """The report of a run; curves are thinned to `max_points`."""
    sections = [
        headline(run),
        data_section(run),
        model_section(run),
        Section("Curves", run_pictures(run, max_points)),
        _cost(run),
        sparsity_section(run, max_points),
        _plugins(run.training),
        _samples(run),
        _sentiment(run),
        transfer_section(run.transfer),
        _last_words(run),
        tasks_section(run.tasks),
        texts_section(run.texts),
        _finetuning(run),
        *audit_sections({run.name: run.audit} if run.audit else {}),
        _environment(run),
        _stages(run),
    ]
    return Document(title, sections)


def _cost(run: RunData) -> Section:
    names = ("flops/dense", "flops/counted", "time/train_s")
    totals: list[float | None] = [run.last(name) for name in names]
    tokens = run.last("train/tokens")
    each = [value / tokens * 1e6 if value is not None and tokens else None for value in totals]
    cost = Table(
        ["cost", "FLOPs dense", "FLOPs counted", "seconds"],
        [
            ["whole training", *map(show.flops, totals[:2]), show.seconds(totals[2])],
            ["per million tokens", *map(show.flops, each[:2]), show.seconds(each[2])],
        ],
    )
    training = run.training
    speed = [
        [
            "tokens per second, all devices (median)",
            show.count(_median(training, "perf/tokens_per_sec")),
        ],
        [
            "wait for data per step (ms, median)",
            show.decimal(_median(training, "perf/data_wait_ms"), 2),
        ],
        ["share of peak FLOP/s (MFU, median)", show.percent(_median(training, "perf/mfu"))],
    ]
    memory = column(training, "mem/max_allocated_gib")
    peak = None if np.isnan(memory).all() else float(np.nanmax(memory))
    speed.append(["largest device memory (GiB)", show.decimal(peak, 2)])
    note = "Seconds are training alone, without evaluation and saving."
    return Section("Cost", [cost, Paragraph(note), Table(["speed", "value"], speed)])


def _median(lines: Lines, key: str) -> float | None:
    values = column(lines, key)
    return None if np.isnan(values).all() else float(np.nanmedian(values))


def _plugins(lines: Lines) -> Section:
    names = sorted({key for line in lines for key in line if "/" in key})
    rows = []
    for name in names:
        if name.startswith(_SHOWN):
            continue
        values = column(lines, name)
        values = values[np.isfinite(values)]
        if len(values):
            numbers = (values[0], values[-1], values.min(), values.max())
            rows.append([name, *(show.general(float(value)) for value in numbers)])
    header = ["metric", "first", "last", "smallest", "largest"]
    return Section("Further measurements", [Table(header, rows)] if rows else [])


def _samples(run: RunData) -> Section:
    blocks: list[Block] = []
    for sample in run.samples:
        prompt, text = _visible(sample["prompt"]), _visible(sample["text"])
        blocks.append(Sample(prompt, text.removeprefix(prompt)))
    if blocks:
        note = "Written by the model; the prompt comes first."
        blocks.insert(0, Paragraph(note))
    return Section("Samples", blocks)


def _visible(text: str) -> str:
    """The text with what no page can hold, and a byte model can write, made visible."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if category(c) in ("Cc", "Cs") and c not in "\n\t" else c
        for c in text
    )


def _sentiment(run: RunData) -> Section:
    result = run.sentiment
    if not result:
        return Section("Sentiment", [])
    rows = [
        ["model features", *_accuracy(result, "accuracy", "interval")],
        ["TF-IDF of words", *_accuracy(result, "tfidf_accuracy", "tfidf_interval")],
        ["most frequent answer", show.percent(result.get("majority_accuracy")), show.DASH],
    ]
    weights = f"{show.count(result.get('nonzero_weights'))} of {show.count(result.get('features'))}"
    note = (
        f"Logistic regression with an L1 penalty (C = {show.general(result.get('C'))}) on "
        f"{show.count(result.get('texts'))} rated texts; {weights} features have a weight. "
        f"{show.count(result.get('texts_per_second'))} texts per second were read."
    )
    return Section("Sentiment", [_accuracies(rows), Paragraph(note)])


def _last_words(run: RunData) -> Section:
    rows = [
        [name, *_accuracy(found, "accuracy", "interval"), show.decimal(found["ppl_per_word"], 1),
         show.count(found["texts"]), show.count(found["cut"])]
        for name, found in run.last_word.items()
    ]  # fmt: skip
    header = ["passages", "last words hit", "95 % interval", "perplexity per word", "texts",
              "texts cut to the model's window"]  # fmt: skip
    return Section("Last words", [Table(header, rows)] if rows else [])


def _finetuning(run: RunData) -> Section:
    result = run.finetune
    if not result:
        return Section("Fine-tuning", [])
    rows = [
        ["fine-tuned classifier", *_accuracy(result, "accuracy", "interval")],
        ["most frequent label", show.percent(result.get("majority_accuracy")), show.DASH],
    ]
    note = f"Macro-averaged F1: {show.percent(result.get('macro_f1'))}."
    if labels := result.get("labels"):
        note += f" Labels: {', '.join(map(str, labels))}."
    return Section("Fine-tuning", [_accuracies(rows), Paragraph(note)])


def _accuracies(rows: list[list[str]]) -> Table:
    return Table(["method", "accuracy", "95 % interval"], rows)


def _accuracy(result: dict[str, Any], value: str, bounds: str) -> tuple[str, str]:
    return show.percent(result.get(value)), show.interval(result.get(bounds))


def _environment(run: RunData) -> Section:
    found = run.environment
    names = ("platform", "hostname", "device", "cpu_count", "world_size", "python", "git")
    rows = [[name, str(found[name])] for name in names if found.get(name) is not None]
    rows += [[name, str(version)] for name, version in found.get("versions", {}).items()]
    blocks: list[Block] = [Table(["environment", "value"], rows, words=2)] if rows else []
    if run.command:
        blocks.append(Code(run.command))
    return Section("Environment and command", blocks)


def _stages(run: RunData) -> Section:
    rows = []
    for stage, manifest in run.stages.items():
        counts = manifest.get("counts", {})
        scalars = {k: v for k, v in counts.items() if not isinstance(v, dict | list)}
        facts = [f"{name} {show.general(value)}" for name, value in scalars.items()]
        seconds = show.seconds(manifest.get("seconds"))
        rows.append([stage, ", ".join(facts) or show.DASH, seconds])
    header = ["finished stage", "counts", "seconds"]
    return Section("Stages", [Table(header, rows, words=2)] if rows else [])
