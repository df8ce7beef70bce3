"""Tasks judged by likelihood, and the loss of other texts: a table each."""

from __future__ import annotations

from typing import Any

from pipeline.report import numbers as show
from pipeline.report.document import Paragraph, Section, Table

_TASKS_NOTE = (
    "The plain choice is the likeliest option, the choice per character the one that is likeliest "
    "for its length. A last word counts where the likeliest token is right at every one of its own."
)
_TEXTS_NOTE = (
    "Bits and the perplexity per word (what stands between white space) can be compared across "
    "tokenizers, the perplexity per token cannot."
)


def tasks_section(results: list[dict[str, Any]]) -> Section:
    """A line a task, in the order of the recipe."""
    header = ["task", "shots", "examples", "accuracy", "95 % interval", "per character",
              "95 % interval", "chance", "perplexity per word", "cut to the window"]  # fmt: skip
    rows = [
        [
            found["task"],
            show.count(found["shots"]),
            show.count(found["examples"]),
            show.percent(found["accuracy"]),
            show.interval(found["interval"]),
            show.percent(found.get("accuracy_normalised")),
            show.interval(found.get("interval_normalised")),
            show.percent(found.get("chance")),
            show.decimal(found.get("ppl_per_word"), 1),
            show.count(found["cut"]),
        ]
        for found in results
    ]
    return Section("Tasks", [Table(header, rows), Paragraph(_TASKS_NOTE)] if rows else [])


def texts_section(results: dict[str, dict[str, Any]]) -> Section:
    """A line a text."""
    header = ["text", "bits per byte", "bits per character", "perplexity per token", "per word",
              "tokens", "words", "window", "stride"]  # fmt: skip
    rows = [
        [
            name,
            show.decimal(found.get("bits_per_byte")),
            show.decimal(found.get("bits_per_character")),
            show.decimal(found.get("ppl_per_token"), 2),
            show.decimal(found.get("ppl_per_word"), 1),
            show.count(found["tokens"]),
            show.count(found.get("words")),
            show.count(found.get("window_tokens")),
            show.count(found.get("stride_tokens")),
        ]
        for name, found in results.items()
    ]
    return Section("Other texts", [Table(header, rows), Paragraph(_TEXTS_NOTE)] if rows else [])
