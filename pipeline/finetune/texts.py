"""Labelled texts for the classifier: read, numbered, split into train, validation and test."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from data_prep.clean import clean
from data_prep.errors import DataError
from data_prep.files import PACKED
from data_prep.recipe.data import CleanConfig
from data_prep.recipe.loader import validate
from data_prep.recipe.sources import FieldSource, Source
from data_prep.sources import Rejects, plan_tasks, read_rows
from pipeline.recipe.finetune import FinetuneConfig

_KINDS: dict[str, dict[str, Any]] = {
    ".csv": {"kind": "csv"},
    ".tsv": {"kind": "csv", "delimiter": "\t"},
    ".jsonl": {"kind": "jsonl"},
    ".json": {"kind": "jsonl"},
    ".parquet": {"kind": "parquet"},
}


class Part(NamedTuple):
    """Texts and the number of each one's class, int64."""

    texts: list[str]
    labels: np.ndarray


class Texts(NamedTuple):
    """The three parts, the names of the classes by number, and the rows that were no texts."""

    train: Part
    validation: Part
    test: Part
    names: list[str]
    skipped: dict[str, int]


class _Rows(NamedTuple):
    texts: list[str]
    labels: list[str]


def read_texts(section: FinetuneConfig) -> Texts:
    """Seeded splits that keep the shares of the classes, where no file is named for a part.

    DataError when a file lacks a field or has too many bad rows, when there are fewer than two
    classes, when a part is empty, or when a label occurs in no training text.
    """
    skipped: Counter[str] = Counter()
    seed = section.seed or 0
    rows = {
        key: _chosen(_read(key, str(path), section, skipped), section.max_texts, seed)
        for key, path in section.data_files.items()
    }
    train = rows["train"]
    names = sorted({*train.labels}, key=_as_number)
    if len(names) < 2:
        found = f"all labelled {names[0]!r}" if names else "none"
        raise DataError(
            f"{section.train}: {len(train.texts)} texts, {found}, in {section.label_field!r}; a "
            "classifier needs two classes or more: check finetune.label_field"
        )
    parts = {key: _numbered(section, key, part, names) for key, part in rows.items()}
    for key, share in (("test", section.test_share), ("validation", section.validation_share)):
        if key not in parts:
            parts["train"], parts[key] = _cut(section, key, parts["train"], share, len(names))
    return Texts(
        parts["train"], parts["validation"], parts["test"],
        [section.label_names.get(name, name) for name in names], dict(skipped),
    )  # fmt: skip


def _read(key: str, path: str, section: FinetuneConfig, skipped: Counter[str]) -> _Rows:
    """The texts and labels of one file or dataset, cleaned; what is skipped is counted."""
    source = source_of(key, path, section)
    rejects = Rejects()
    found = _Rows([], [])
    cleaning = section.clean or CleanConfig(profile="none")
    for task in plan_tasks([source]):
        for block in read_rows(task, source, rejects):
            assert block.labels is not None
            for text, label, record in zip(block.texts, block.labels, block.records, strict=True):
                cleaned = clean(text, cleaning, Counter())
                if not cleaned or not label:
                    rejects.add(task.path, int(record), "no_label" if cleaned else "no_text")
                    continue
                found.texts.append(cleaned)
                found.labels.append(label)
    bad = rejects.counts.total()
    rows = bad + len(found.texts)
    if bad > section.max_bad_share * rows:
        first = rejects.samples[0]["record"]
        raise DataError(
            f"{path}: {bad} of {rows} rows cannot be used ({_told(rejects)}), the first at record "
            f"{first}: correct them or raise finetune.max_bad_share"
        )
    if not found.texts:
        raise DataError(f"finetune.{key}: {path} holds no text: name a file that does")
    skipped.update(rejects.counts)
    return found


def source_of(key: str, path: str, section: FinetuneConfig) -> Source:
    """How a path is read: a file by its name's end, a folder as a dataset whose split is `key`."""
    fields = {"path": path, "text_field": section.text_field, "join_with": section.join_with,
              "label_field": section.label_field}  # fmt: skip
    if Path(path).is_dir():
        kind: dict[str, Any] = {"kind": "datasets", "split": key}
    else:
        name = Path(path)
        suffix = Path(name.stem).suffix if name.suffix in PACKED else name.suffix
        if suffix not in _KINDS:
            raise DataError(
                f"finetune.{key}: {path} ends in none of {', '.join(_KINDS)} ({', '.join(PACKED)} "
                "may follow) and is no folder: name a file of one of these kinds"
            )
        kind = _KINDS[suffix]
    source: FieldSource = validate(Source, fields | kind, f"finetune.{key}")
    return source  # type: ignore[return-value]


def _told(rejects: Rejects) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in rejects.counts.items())


def _as_number(name: str) -> tuple[float, str]:
    """Numbers in their order, other names by letters after them."""
    try:
        return float(name), name
    except ValueError:
        return float("inf"), name


def _chosen(rows: _Rows, most: int | None, seed: int) -> _Rows:
    """A seeded choice, in the order of the file."""
    if most is None or len(rows.texts) <= most:
        return rows
    places = np.sort(np.random.default_rng(seed).choice(len(rows.texts), most, replace=False))
    return _Rows([rows.texts[i] for i in places], [rows.labels[i] for i in places])


def _numbered(section: FinetuneConfig, key: str, rows: _Rows, names: list[str]) -> Part:
    number = {name: i for i, name in enumerate(names)}
    if unknown := sorted({*rows.labels} - {*names}):
        shown = ", ".join(map(repr, unknown[:5]))
        raise DataError(
            f"{section.data_files[key]}: label {shown} occurs in no text of {section.train}, which "
            f"has {', '.join(map(repr, names[:10]))}: check both files"
        )
    return Part(rows.texts, np.array([number[label] for label in rows.labels]))


def _cut(
    section: FinetuneConfig, key: str, part: Part, share: float, classes: int
) -> tuple[Part, Part]:
    """The rest and a part of it, with the same shares of the classes in both."""
    places = np.arange(len(part.texts))
    try:
        rest, held = train_test_split(
            places, test_size=share, stratify=part.labels, random_state=section.seed or 0
        )
    except ValueError as error:
        raise DataError(
            f"{section.train}: cannot hold out a {key} set ({error}); give more texts of each of "
            f"the {classes} classes, name finetune.{key}, or check finetune.label_field"
        ) from None
    return _take(part, np.sort(rest)), _take(part, np.sort(held))


def _take(part: Part, places: np.ndarray) -> Part:
    return Part([part.texts[i] for i in places], part.labels[places])
