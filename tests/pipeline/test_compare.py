"""Runs side by side and studies: the arithmetic of verdicts and tables, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep.errors import RecipeError
from pipeline.report.compare import compare_runs, study_table
from pipeline.report.summary import caveats, read_summaries, read_summary, verdict

from .test_report import Page, make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("compare")
    make_run(root, "A", points=60, bits=2.0)
    make_run(root, "B", points=60, bits=2.016, cost=0.26)
    make_run(root, "C", points=60, bits=2.1, cost=0.5)
    return [root / "runs" / name for name in "ABC"]


def test_verdict_arithmetic(runs: list[Path]) -> None:
    first, second = read_summary(runs[0]), read_summary(runs[1])
    expected = "B: 0.26x FLOPs, 0.26x seconds, +0.8 % bits per byte, sentiment accuracy within"
    assert verdict(second, first) == f"{expected} the interval of A"
    better = replace(second, bits_per_byte=1.9, sentiment=0.8, seconds=73.2)
    assert "0.61x seconds, -5.0 % bits per byte, sentiment accuracy above" in verdict(better, first)
    unknown = replace(second, sentiment=None, bits_per_byte=None, seconds=None)
    assert verdict(unknown, first) == "B: 0.26x FLOPs"


def test_page_and_markdown(runs: list[Path], tmp_path: Path) -> None:
    page = compare_runs(runs, tmp_path / "out")
    assert page == tmp_path / "out/compare.html"
    parsed, text = Page(page.read_text()), (tmp_path / "out/compare.md").read_text()
    assert parsed.open == []
    assert all(address.startswith("data:") for address in parsed.addresses)
    for expected in ("B: 0.26x FLOPs", "+0.8 % bits per byte", "987,654", "71.2 % [68.0, 74.1]"):
        assert expected in parsed.text
        assert expected in text
    assert len(re.findall(r"!\[.*\]\(compare/bits_(tokens|seconds|flops)\.png\)", text)) == 3
    assert "nats" not in parsed.text  # losses per token are never compared


def test_caveats(runs: list[Path]) -> None:
    first, second = read_summary(runs[0]), read_summary(runs[1])
    assert caveats([first, second]) == []
    assert "tokenizers differ" in caveats([first, replace(second, tokenizer="other")])[0]
    assert "different text" in caveats([first, replace(second, text="other")])[0]


def test_equal_names_are_told_apart(runs: list[Path], tmp_path: Path) -> None:
    make_run(tmp_path, "A", points=30)
    names = [summary.name for summary in read_summaries([runs[0], tmp_path / "runs/A", runs[1]])]
    assert names == [str(runs[0]), str(tmp_path / "runs/A"), "B"]


def test_refusals(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="at least two"):
        compare_runs(runs[:1], tmp_path)
    with pytest.raises(RecipeError, match="nowhere is not a run"):
        compare_runs([runs[0], tmp_path / "nowhere"], tmp_path)
    untrained = tmp_path / "untrained"
    untrained.mkdir()
    (untrained / "config.yaml").write_text(yaml.safe_dump({"data": {"folder": "x"}}))
    with pytest.raises(RecipeError, match="untrained cannot be compared"):
        compare_runs([runs[0], untrained], tmp_path)
    with pytest.raises(RecipeError, match="arm 'dense' has no runs"):
        study_table({"dense": []}, tmp_path, "Study")


def test_study(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    groups = {"dense": [runs[0], runs[2]], "sparse": [runs[1]]}
    table = study_table(groups, tmp_path / "s/out", "Sparse or dense")
    assert table == tmp_path / "s/out/table.md"
    mean, deviation = np.mean([2.0, 2.1]), np.std([2.0, 2.1], ddof=1)
    text = table.read_text()
    assert text.startswith("# Sparse or dense")
    assert f"| dense | 2 | {mean:.4f} ± {deviation:.4f} | 90.0 ± 42.4 |" in text
    assert "| sparse | 1 | 2.0160 ± – | 31.2 ± – |" in text
    assert Page((tmp_path / "s/out/compare.html").read_text()).open == []


def test_study_without_sentiment_in_one_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path, name, points=30)
    runs = [tmp_path / "runs" / name for name in ("a", "b")]
    (runs[0] / "evals/sentiment.json").unlink()
    metrics = runs[0] / "metrics.jsonl"  # one seed that stopped early
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= 150]
    metrics.write_text("".join(kept))
    text = study_table({"arm": runs}, tmp_path / "out", "Study").read_text()
    assert re.search(r"\| arm \| 2 \|.*\| – \|$", text, re.M)
