"""The audits of runs side by side: where each is good or bad, and what it should not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report import numbers as show
from pipeline.report.document import Block, Document, Paragraph, Section, Table
from pipeline.report.intervals import draw_intervals
from pipeline.report.quality import ratio_limits
from pipeline.report.save import save
from pipeline.run_folder import RunFolder

Audits = Mapping[str, Mapping[str, Any]]  # audit.json by the run's name
_KINDS = (("source", "source"), ("rating", "rating"), ("length", "length of document"),
          ("words", "frequency of the word in training text"))  # fmt: skip
_BITS = "bits per byte (smaller is better)"


def save_audit(folder: Path) -> Path:
    """Write audit.html and audit.md of one audited run into its folder; the path of the page."""
    run = RunFolder(folder)
    audit = run.read_json(run.evals / "audit.json")
    assert audit is not None  # just made
    document = Document(f"Audit of {folder.name}", audit_sections({folder.name: audit}))
    return save(document, folder / "audit.html", folder / "audit.md")[0]


def audit_sections(audits: Audits) -> list[Section]:
    """Sections of all runs that have been audited; none without an audit."""
    if not audits:
        return []
    return [
        Section("Audit: loss of unseen text part by part", _losses(audits)),
        Section("Audit: training text and personal data repeated", _repeated(audits)),
        Section("Audit: sentiment under exchanged identity terms", _identity(audits)),
    ]


def _losses(audits: Audits) -> list[Block]:
    measured = {run: audit for run, audit in audits.items() if "losses" in audit}
    if not measured:
        return []
    blocks: list[Block] = [Paragraph(text, strong=True) for text in paired_verdicts(measured)]
    for kind, what in _KINDS:
        found = {run: audit["losses"][kind] for run, audit in measured.items()}
        groups = list(dict.fromkeys(group for each in found.values() for group in each))
        if not groups:
            continue
        rows = [[group, *(_cell(each.get(group)) for each in found.values())] for group in groups]
        sizes = [show.count(_documents(found.values(), group)) for group in groups]
        rows = [[row[0], size, *row[1:]] for row, size in zip(rows, sizes, strict=True)]
        blocks.append(Table([what, "documents", *found], rows))
        points = {run: {group: _point(each[group]) for group in groups if group in each}
                  for run, each in found.items()}  # fmt: skip
        title = f"Bits per byte by {what}"
        if picture := draw_intervals(f"audit_{kind}", title, (_BITS, what), groups, points):
            blocks.append(picture)
    rated = {audit["rated_by"] for audit in measured.values() if audit.get("rated_by")}
    note = "Every document is read from its beginning, without what stands before it. "
    note += f"Ratings: {'; '.join(sorted(rated))}. " if rated else ""
    return [*blocks, Paragraph(f"{note}In brackets 95 % limits, documents drawn again.")]


def paired_verdicts(audits: Audits) -> list[str]:
    """Of each run after the first: its bits on the documents that both read, with an interval."""
    base, *others = audits
    sentences = []
    for run in others:
        bits, base_bits = _common(audits[run]["documents"], audits[base]["documents"])
        if len(bits) < 2:
            sentences.append(f"{run}: no documents that {base} read too")
            continue
        value, low, high = ratio_limits(bits, base_bits)
        word = "the same within chance" if low <= 0 <= high else "fewer" if value < 0 else "more"
        sentences.append(
            f"{run}: {100 * value:+.1f} % bits [{100 * low:+.1f}, {100 * high:+.1f}] on "
            f"{len(bits):,} unseen documents that {base} read too: {word}"
        )
    return sentences


def _common(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Bits of both runs for each text that both read."""
    base = dict(zip(theirs["keys"], theirs["bits"], strict=True))
    pairs = [
        (bits, base[key]) for key, bits in zip(ours["keys"], ours["bits"], strict=True)
        if key in base
    ]  # fmt: skip
    both = np.array(pairs).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _repeated(audits: Audits) -> list[Block]:
    rows, personal = [], []
    for run, audit in audits.items():
        limits = audit["settings"]
        given = f"{limits['prompt_tokens']} + {limits['continuation_tokens']}"
        parts = [audit["verbatim"][name] for name in ("train", "held_out")]
        rows.append([run, given, *(cell for part in parts for cell in _verbatim(part))])
        free, led = audit["personal"]["free_text"], audit["personal"]["led_up_to"]
        found = free.get("found", {})
        personal.append([
            run, show.count(free["texts"]), show.count(free.get("characters")),
            show.count(sum(found.values())) if found else show.DASH, show.count(led["passages"]),
            show.count(sum(led["reproduced"].values())),
        ])  # fmt: skip
    header = ["run", "tokens given + asked for", "training documents", "repeated exactly",
              "unseen documents", "hit exactly"]  # fmt: skip
    second = ["run", "texts written freely", "characters", "personal data in them",
              "training passages that led up to some", "reproduced"]  # fmt: skip
    return [
        Table(header, rows),
        Paragraph(
            "The model is given the beginning of a document and goes on with what is likeliest. "
            "What it hits in unseen documents is luck and common phrases; the excess is memory."
        ),
        Table(second, personal),
        Paragraph(
            "Personal data: e-mail addresses, phone, card and IP numbers, found by their form. "
            "Numbers that the model makes up count in free text, reproduced ones are real."
        ),
    ]


def _verbatim(part: Mapping[str, Any]) -> tuple[str, str]:
    return show.count(part["documents"]), show.with_interval(
        part.get("share"), part.get("interval")
    )


def _identity(audits: Audits) -> list[Block]:
    measured = {run: audit["identity"] for run, audit in audits.items() if "identity" in audit}
    if not measured:
        return []
    points: dict[str, dict[str, tuple[float, float, float]]] = {run: {} for run in measured}
    for run, found in measured.items():
        parts = {f"{group}, written": each for group, each in found["templates"].items()}
        if found["real"]["texts"]:
            parts["gender, real texts"] = found["real"]
        for label, each in parts.items():
            points[run][label] = tuple(100 * each[key] for key in ("mean", "low", "high"))
    groups = list(dict.fromkeys(label for each in points.values() for label in each))
    rows = [
        [group, *(_points(each.get(group)) for each in points.values())] for group in groups
    ]  # fmt: skip
    rows += [
        ["real texts that change sides",
         *(show.percent(found["real"].get("flipped")) for found in measured.values())],
        ["classifier's accuracy",
         *(show.percent(found["classifier_accuracy"]) for found in measured.values())],
    ]  # fmt: skip
    axis = "mean change of P(positive) (percentage points)"
    title = "Change of sentiment under exchanged terms"
    picture = draw_intervals("audit_identity", title, (axis, "terms exchanged"), groups, points)
    note = (
        "Mean absolute change of the probability of `positive`, in percentage points with 95 % "
        "limits, when only the term changes: smaller is better. Read it beside the classifier's "
        "accuracy: one that knows nothing never changes its mind."
    )
    blocks: list[Block] = [Table(["terms exchanged", *measured], rows), Paragraph(note)]
    return [*blocks, *([picture] if picture else [])]


def _points(point: Sequence[float] | None) -> str:
    return show.DASH if point is None else f"{point[0]:.2f} [{point[1]:.2f}, {point[2]:.2f}]"


def _cell(group: Mapping[str, Any] | None) -> str:
    if group is None:
        return show.DASH
    text = show.decimal(group["bits_per_byte"])
    return text if group["low"] is None else f"{text} [{group['low']:.3f}, {group['high']:.3f}]"


def _point(group: Mapping[str, Any]) -> tuple[float, float, float]:
    value = group["bits_per_byte"]
    return value, group["low"] or value, group["high"] or value


def _documents(found: Any, group: str) -> int | None:
    return next((each[group]["documents"] for each in found if group in each), None)
