"""The data card: where the text came from, what was done to it, what is left. As JSON for
programs, as Markdown for people; both are made from the same values, none is written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .findings import Findings
from .manifest import FileRecord, write_atomic
from .recipe.data import DataConfig

CARD_JSON, CARD_MARKDOWN, REJECTS = "card.json", "README.md", "rejects.jsonl"


def write_card(
    folder: Path,
    data: DataConfig,
    inputs: Sequence[FileRecord],
    tokenizer: dict[str, Any],
    findings: Findings,
) -> list[Path]:
    """Write card.json, README.md and rejects.jsonl into `folder`; returns their paths."""
    found = asdict(findings)
    rejects = found.pop("rejects")
    card = {
        "sources": found.pop("sources"),
        "files": [{"path": r.path, "bytes": r.size, "sha256": r.sha256} for r in inputs],
        **found,
        "cleaning": data.clean.model_dump(mode="json"),
        "duplicates": data.duplicates.model_dump(mode="json"),
        "personal_data": {
            "replaced_kinds": data.personal.scrub,
            "replaced": {k: v for k, v in found["counts"]["changed"].items() if k in _PERSONAL},
            "not_covered": "names, postal addresses, and numbers in unusual forms",
        },
        "order": data.order,
        "tokenizer": tokenizer,
    }
    for split in card["splits"].values():
        split.pop("shards")
    paths = [folder / name for name in (CARD_JSON, CARD_MARKDOWN, REJECTS)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rejects]
    texts = [
        json.dumps(card, indent=1, ensure_ascii=False) + "\n",
        "\n".join(_markdown(card)) + "\n",
        "".join(line + "\n" for line in lines),
    ]
    for path, text in zip(paths, texts, strict=True):
        write_atomic(path, text)
    return paths


_PERSONAL = ("email", "phone", "card", "ip")


def _markdown(card: dict[str, Any]) -> Iterator[str]:
    licences = sorted({source["licence"] for source in card["sources"]})
    yield from ["# Data card", "", f"Licences as stated: {', '.join(licences)}.", ""]
    yield from ["## Sources", ""]
    yield from _table(
        ["path", "kind", "licence", "origin", "weight", "records", "rejected", "kept"],
        [
            [_listed(s["path"]), s["kind"], s["licence"], s["origin"], s["weight"], s["records"],
             s["rejected"], s["kept_before_duplicates"]]
            for s in card["sources"]
        ],
    )  # fmt: skip
    yield from ["", "Kept is before duplicates were dropped.", "", "## Counts", ""]
    counts = card["counts"].items()
    rows = [[group, name, count] for group, some in counts for name, count in some.items()]
    yield from _table(["", "what", "count"], rows)
    yield from ["", "## Splits", ""]
    names = ("documents", "tokens", "bytes", "characters")
    rows = [[name, *(split[n] for n in names)] for name, split in card["splits"].items()]
    yield from _table(["split", *names], rows)
    yield from ["", "## Tokenizer", ""]
    report = card["tokenizer"]["report"]
    yield f"{card['tokenizer']['kind']}, {card['tokenizer']['vocab_size']:,} ids. On a sample: "
    yield f"{report['bytes_per_token']:.3f} bytes per token, {report['unknown_rate']:.3%} unknown, "
    yield f"{report['exact_round_trips']:.2%} of documents come back exactly."
    yield from ["", "## Filters", ""]
    cleaning, twins = card["cleaning"], card["duplicates"]
    yield f"- cleaning profile {cleaning['profile']}, documents in the order `{card['order']}`"
    yield f"- exact duplicates {_dropped(twins['exact'])}"
    near = f" (Jaccard >= {twins['threshold']} of {twins['ngram']}-grams)" if twins["near"] else ""
    yield f"- near duplicates {_dropped(twins['near'])}{near}"
    personal = card["personal_data"]
    kinds = ", ".join(personal["replaced_kinds"]) or "nothing"
    yield f"- personal data replaced: {kinds}; not covered: {personal['not_covered']}"
    yield from ["", "## Overlap with evaluation sets", ""]
    yield from _leaks(card["leaks"])
    yield from ["", "## Files", ""]
    yield from _table(["file", "bytes", "sha256"], [list(f.values()) for f in card["files"]])


def _leaks(leaks: dict[str, dict[str, Any]]) -> Iterator[str]:
    if not leaks:
        yield "No evaluation set was named in `data.leaks.sets`, so none was looked for."
        return
    columns = ["examples", "examples_found", "too_short", "overlapping_documents", "removed"]
    rows = [[name, *(found[column] for column in columns)] for name, found in leaks.items()]
    titles = ["set", "examples", "found in the corpus", "too short to look for",
              "documents that overlap", "these were removed"]  # fmt: skip
    yield from _table(titles, rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(titles) + " |"
    yield "|" + " --- |" * len(titles)
    for row in rows:
        cells = (f"{c:,}" if isinstance(c, int) and c is not True and c is not False else str(c)
                 for c in row)  # fmt: skip
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _listed(path: str | list[str]) -> str:
    return path if isinstance(path, str) else ", ".join(path)


def _dropped(flag: bool) -> str:
    return "dropped" if flag else "kept"
