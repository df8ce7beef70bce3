"""What was trained on what: the text and its splits, the model and its training settings."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.report import numbers as show
from pipeline.report.document import Block, Picture, Section, Table
from pipeline.report.figures import Axis, Curve, draw
from pipeline.report.load import RunData

_LENGTHS = 64  # powers of two at most


def data_section(run: RunData) -> Section:
    """Sources, splits, and what cleaning changed or dropped."""
    sources = run.setting("data.sources") or []
    blocks: list[Block] = [
        Table(
            ["source", "kind", "text", "licence as stated"],
            [
                [
                    _listed(s["path"]),
                    s["kind"],
                    _listed(s.get("text_field") or s.get("document")),
                    s.get("licence", "unknown"),
                ]
                for s in sources
            ],
            words=4,
        )
    ]
    if splits := run.data.get("splits"):
        blocks.append(_splits(splits))
        if picture := _lengths(splits):
            blocks.append(picture)
    if counts := run.data.get("counts"):
        rows = [
            [group, name.replace("_", " "), show.count(number)]
            for group, found in counts.items()
            for name, number in found.items()
        ]
        blocks.append(Table(["documents", "what", "count"], rows, words=2))
    if leaks := run.data.get("leaks"):
        blocks.append(_leaks(leaks))
    return Section("Text", blocks)


def model_section(run: RunData) -> Section:
    """The model and how it was trained, a setting a row."""
    tokenizer = run.data.get("tokenizer", {})
    optimizer = run.setting("optim") or {}
    micro, window = run.setting("batch.micro_batch"), run.setting("batch.window_tokens")
    rows = [
        ["model", _described(run.setting("model"))],
        ["parameters", show.count(run.parameters)],
        ["tokenizer", _described(tokenizer or run.setting("tokenizer"))],
        ["output layer", _described(run.setting("head"))],
        ["sparsity", _described(run.setting("sparsity"))],
        ["global batch (windows)", show.general(run.setting("batch.global_batch"))],
        ["micro-batch (windows)", show.general(micro)],
        ["window (tokens)", show.general(window)],
        ["optimizer", _described(optimizer)],
        ["optimizer steps", f"{show.count(run.last('step'))} of {show.count(_steps(run))}"],
        ["skipped steps", show.count(run.last("train/skipped_steps"))],
        ["passes over the text (epochs)", show.decimal(run.last("train/epoch"), 2)],
        ["precision", _precision(run)],
        ["ZeRO stage", show.general(run.setting("engine.zero_stage"))],
        ["devices", show.general(run.environment.get("world_size"))],
        ["seed", show.general(run.setting("run.seed"))],
    ]
    return Section("Model and training", [Table(["setting", "value"], rows, words=2)])


def _splits(splits: dict[str, dict[str, Any]]) -> Table:
    rows = [
        [
            name,
            *(show.count(split.get(key)) for key in ("documents", "tokens", "bytes", "characters")),
            show.decimal(split.get("unigram_bits_per_byte")),
        ]
        for name, split in splits.items()
    ]
    header = ["split", "documents", "tokens", "bytes", "characters", "unigram bits per byte"]
    return Table(header, rows)


def _lengths(splits: dict[str, dict[str, Any]]) -> Picture | None:
    """How long the documents of each split are."""
    curves = []
    for name, split in splits.items():
        counts = np.array(split.get("documents_by_log2_tokens", []), float)
        if counts.sum():
            curves.append(Curve(name, np.arange(len(counts)), counts / counts.sum(), "points"))
    x = Axis("length of a document (tokens: from 2 to this power, to twice as many)")
    y = Axis("share of the split's documents (0 to 1)", zero=True)
    return draw("lengths", "Length of documents", x, y, curves, _LENGTHS)


def _leaks(leaks: dict[str, dict[str, Any]]) -> Table:
    rows = [
        [name, *(show.count(found[key]) for key in
                 ("examples", "examples_found", "too_short", "overlapping_documents")),
         "removed" if found["removed"] else "kept"]
        for name, found in leaks.items()
    ]  # fmt: skip
    header = ["evaluation set", "examples", "found in the text", "too short to look for",
              "documents that overlap", "these were"]  # fmt: skip
    return Table(header, rows)


def _listed(value: str | list[str] | None) -> str:
    return value if isinstance(value, str) else ", ".join(value or [])


def _steps(run: RunData) -> int | None:
    return run.setting("run.steps")


def _precision(run: RunData) -> str:
    """The dtype that DeepSpeed was given; the recipe's own word may be `auto`."""
    for dtype in ("bf16", "fp16"):
        if run.deepspeed.get(dtype, {}).get("enabled"):
            return dtype
    return "fp32" if run.deepspeed else show.general(run.setting("precision.dtype"))


def _described(section: dict[str, Any] | None) -> str:
    """A recipe section in one line: its kind, then its keys. Fingerprints are for machines."""
    if not section:
        return show.DASH
    facts = [str(section["kind"])] if "kind" in section else []
    for key, value in section.items():
        if key in ("kind", "fingerprint", "folder", "report") or value is None:
            continue
        text = _described(value) if isinstance(value, dict) else show.general(value)
        facts.append(f"{key.replace('_', ' ')} {text}")
    return ", ".join(facts)
