"""The report of a run: what it shows, and that it is self-contained.

`make_run` writes the run folder of a finished run, without training, for all tests of reports.
"""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.recipe import load_recipe
from pipeline.report.stage import write_report

OPTIONAL = [
    "prepared/manifest.json",
    *(f"runs/demo/{name}" for name in (
        "env.json", "status.json", "command.txt", "ds_config.json", "stages/pretrain.json",
        "evals/heldout.json", "evals/sentiment.json", "evals/samples.json",
        "evals/last_word.json", "evals/tasks.json", "evals/texts.json", "finetune/metrics.json",
    )),
]  # fmt: skip
VOID = {"meta", "img", "br"}


def make_run(
    root: Path, name: str, points: int = 300, seed: int = 0, bits: float = 2.4, cost: float = 1.0
) -> Path:
    """A prepared folder and a finished run below `root`; the path of its recipe.

    `bits` is the last bits per byte while training, `cost` scales seconds and counted FLOPs.
    """
    recipe = root / f"{name}.yaml"
    source = {"kind": "jsonl", "path": "reviews.jsonl", "text_field": "text"}
    recipe.write_text(yaml.safe_dump({
        "run": {"name": name, "folder": str(root / "runs"), "steps": points * 10, "seed": seed},
        "data": {"folder": str(root / "prepared"), "sources": [source]},
        "tokenizer": {"kind": "bytes"},
        "model": {"kind": "mlstm", "hidden": 64},
        "batch": {"global_batch": 8, "micro_batch": 4, "window_tokens": 32},
        "optim": {"lr": 0.002},
    }))  # fmt: skip
    folder = root / "runs" / name
    _write(root / "prepared/manifest.json", PREPARED)
    for path, content in FILES.items():
        _write(folder / path, content)
    (folder / "command.txt").write_text("deepspeed pretrain.py demo.yaml\n")
    (folder / "config.yaml").write_text(load_recipe(recipe).to_yaml())
    lines = [line for i in range(points) for line in _lines(i + 1, points, bits, cost)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return recipe


def _lines(i: int, points: int, bits: float, cost: float) -> list[dict[str, Any]]:
    """A training line, and an evaluation line thirty times a run."""
    step, share = i * 10, i / points
    both = {
        "step": step, "train/tokens": step * 256, "flops/counted": 3e11 * share * cost,
        "time/train_s": 120 * share * cost,
    }  # fmt: skip
    training = both | {
        "iteration": step + 1, "train/loss": 5.5 / (1 + 9 * share) ** 0.5 + i * 37 % 11 / 40,
        "train/grad_norm": 1 + i % 5, "train/learning_rate": 2e-3 * (1 - share),
        "train/skipped_steps": 1, "train/epoch": 3 * share, "perf/tokens_per_sec": 20_000 + i % 99,
        "perf/data_wait_ms": 0.4, "flops/dense": 6e11 * share, "plugin/density": 1 - share / 2,
    }  # fmt: skip
    if i % max(1, points // 30) and i != points:
        return [training]
    found = bits / share**0.15
    return [training, both | {
        "eval/loss": found * 0.69, "eval/bits_per_byte": found, "eval/bpc": found,
        "eval/ppl_per_token": 2**found, "eval/ppl_per_byte": 2**found,
    }]  # fmt: skip


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


_SPLIT = {"documents": 9000, "tokens": 1_234_567, "bytes": 1_200_000, "characters": 1_190_000,
          "documents_by_log2_tokens": [0, 10, 3000, 5000, 990]}  # fmt: skip
_HELD_OUT = _SPLIT | {"documents": 180, "unigram_bits_per_byte": 4.5}
PREPARED = {
    "splits": {"train": _SPLIT, "validation": _HELD_OUT, "test": _HELD_OUT},
    "tokenizer": {"kind": "bytes", "vocab_size": 256, "fingerprint": "ab" * 32},
    "counts": {
        "records": {"read": 9400},
        "rejected": {},
        "dropped": {"too_short": 40},
        "changed": {},
    },
    "leaks": {
        "sst": {
            "examples": 1821,
            "examples_found": 3,
            "too_short": 12,
            "overlapping_documents": 4,
            "removed": True,
        }
    },
}
FILES: dict[str, Any] = {
    "env.json": {
        "versions": {"torch": "2.11.0", "deepspeed": "0.19.8"}, "python": "3.11.7",
        "platform": "Linux", "device": "cpu", "cpu_count": 2, "world_size": 2,
    },
    "status.json": {"state": "finished", "step": 3000, "reason": None},
    "ds_config.json": {"bf16": {"enabled": True}, "fp16": {"enabled": False}},
    "stages/pretrain.json": {"stage": "pretrain", "counts": {"parameters": 987_654}},
    "evals/heldout.json": {
        "bits_per_byte": 2.31, "bits_per_character": 2.33, "ppl_per_token": 4.96,
        "ppl_per_byte": 4.96, "unigram_bits_per_byte": 4.46, "tokens": 24_000,
    },
    "evals/sentiment.json": {
        "texts": 4000, "accuracy": 0.712, "interval": [0.68, 0.741], "majority_accuracy": 0.589,
        "tfidf_accuracy": 0.69, "tfidf_interval": [0.66, 0.72], "nonzero_weights": 31, "C": 0.25,
        "texts_per_second": 210.5, "features": 64,
    },
    "evals/samples.json": [
        {"prompt": "The film", "text": "The film was ```good``` | and <b>\x00 short."},
        {"prompt": "<script>", "text": "alert(1)</script> & so on. " + "long" * 90},
    ],
    "evals/last_word.json": {
        "lambada": {"texts": 5153, "cut": 4711, "ppl_per_word": 432.14, "accuracy": 0.137,
                    "interval": [0.128, 0.146]},
    },
    "evals/tasks.json": [
        {"task": "hellaswag", "shots": 5, "examples": 10_042, "accuracy": 0.2917,
         "interval": [0.281, 0.302], "accuracy_normalised": 0.3114, "chance": 0.25,
         "interval_normalised": [0.301, 0.322], "cut": 0},
        {"task": "lambada", "shots": 0, "examples": 5153, "accuracy": 0.234,
         "interval": [0.22, 0.25], "ppl_per_word": 51.26, "cut": 17},
    ],
    "evals/texts.json": {
        "wikitext": {"bits_per_byte": 1.1234, "bits_per_character": 1.13, "ppl_per_token": 31.4,
                     "ppl_per_word": 77.77, "tokens": 300_001, "words": 241_211,
                     "window_tokens": 256, "stride_tokens": 64},
    },
    "finetune/metrics.json": {
        "accuracy": 0.81, "interval": [0.79, 0.83], "macro_f1": 0.8, "majority_accuracy": 0.5,
        "labels": ["bad", "good"],
    },
}  # fmt: skip


class Page(HTMLParser):
    """Tags that are left open, and every address that the page names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "style")]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def report(recipe_path: Path) -> tuple[Path, str, str]:
    recipe = load_recipe(recipe_path)
    output = write_report(recipe)
    assert all(path.is_file() for path in output.outputs)
    folder = recipe.run_folder
    return folder, (folder / "report.html").read_text(), (folder / "report.md").read_text()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    return report(make_run(tmp_path_factory.mktemp("full"), "demo"))


def test_page_parses_and_loads_nothing(full: tuple[Path, str, str]) -> None:
    page = Page(full[1])
    assert page.open == []
    assert len(page.addresses) == 6
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"https?://|@import|url\(|<script|<link", full[1])
    assert 'name="viewport"' in full[1]


def test_order_of_sections(full: tuple[Path, str, str]) -> None:
    titles = [
        "Result", "Text", "Model and training", "Curves", "Cost", "Further measurements", "Samples",
        "Sentiment", "Last words", "Tasks", "Other texts", "Fine-tuning", "Environment and command",
        "Stages",
    ]  # fmt: skip
    assert re.findall(r"<h2>(.*?)</h2>", full[1]) == titles
    assert re.findall(r"^## (.*)$", full[2], re.M) == titles


def test_numbers_are_shown_and_equal_in_both(full: tuple[Path, str, str]) -> None:
    page, text = Page(full[1]).text, full[2].replace("\\", "")
    for expected in (
        "2.31; byte frequencies alone (unigram baseline) need 4.46: 48 % fewer bits",
        "71.2 % [68.0, 74.1]", "58.9 %", "1,234,567", "6.00e11", "3.00e11", "plugin/density",
        "FLOPs dense", "too short", "bf16", "deepspeed pretrain.py", "[66.0, 72.0]", "81.0 %",
        "13.7 %", "[12.8, 14.6]", "432.1", "4,711", "10,042", "31.1 %", "[30.1, 32.2]", "51.3",
        "77.8", "241,211",
    ):  # fmt: skip
        assert expected in page, expected
        assert expected in text, expected
    rows = re.findall(r"^\| (.*) \|$", text, re.M)
    cells = [cell for row in rows if "---" not in row for cell in row.split(" | ")]
    assert Page(full[1]).cells == [unescape(cell) for cell in cells]


def test_hostile_sample_is_text_not_markup(full: tuple[Path, str, str]) -> None:
    assert "<script>alert(1)</script>" in Page(full[1]).text
    assert "<script" not in full[1]
    assert "\x00" not in full[1]
    assert "````text\n" in full[2]  # the sample holds ``` itself


def test_markdown_pictures_are_files(full: tuple[Path, str, str]) -> None:
    links = re.findall(r"!\[.*?\]\((.*?)\)", full[2])
    assert len(links) == 6
    assert all((full[0] / link).read_bytes().startswith(b"\x89PNG") for link in links)
