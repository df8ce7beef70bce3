"""Runs side by side and studies: the arithmetic of verdicts and tables, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep.errors import RecipeError, run_main
from pipeline.__main__ import main
from pipeline.report.compare import compare_runs
from pipeline.report.quality import Measure
from pipeline.report.study import study_table
from pipeline.report.summary import caveats, comparable, read_summaries, read_summary
from pipeline.report.verdict import arm_verdict, verdict
from pipeline.stages.study import summarise_study

from .test_report import Page, make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("compare")
    make_run(root, "A", points=60, bits=2.0)
    make_run(root, "B", points=60, bits=2.016, cost=0.26)
    make_run(root, "C", points=60, bits=2.1, cost=0.5)
    return [root / "runs" / name for name in "ABC"]


ACCURACY = ("sentiment", "accuracy")


def test_verdict_arithmetic(runs: list[Path]) -> None:
    first, second = read_summary(runs[0]), read_summary(runs[1])
    expected = "B: 0.26x FLOPs, 0.26x hours, +0.8 % bits per byte, same lambada, sentiment, "
    tasks = "hellaswag (5 shots), lambada (0 shots) and finetune accuracy within the interval"
    assert verdict(second, first) == expected + tasks
    measures = {**second.measures, ACCURACY: Measure(0.8, 0.77, 0.83)}
    better = replace(second, bits_per_byte=1.9, measures=measures, seconds=73.2)
    assert "0.61x hours, -5.0 % bits per byte" in verdict(better, first)
    assert "better sentiment accuracy (+8.8 points)" in verdict(better, first)
    unknown = replace(second, measures={}, bits_per_byte=None, seconds=None)
    assert verdict(unknown, first) == "B: 0.26x FLOPs"
    assert "% loss per token" in verdict(second, first, by="loss")


def test_money_is_time_on_all_devices_at_a_price(runs: list[Path], tmp_path: Path) -> None:
    cheap, dear = (read_summary(runs[0], price) for price in (None, 3.6))
    assert cheap.money is None and "money" not in verdict(cheap, cheap)
    assert dear.money == pytest.approx(120 * 2 * 3.6 / 3600)  # 120 s of 2 devices
    assert "1.00x money" in verdict(dear, dear)
    compare_runs(runs, tmp_path / "out", price=3.6)
    assert (tmp_path / "out/compare/bits_money.png").is_file()
    with pytest.raises(RecipeError, match="above 0"):
        compare_runs(runs, tmp_path / "out", price=0)


def test_losses_of_other_tokens_are_refused(runs: list[Path], tmp_path: Path) -> None:
    compare_runs(runs[:2], tmp_path / "same", by="loss")
    assert "nats per token" not in (tmp_path / "same/compare.md").read_text()
    assert (tmp_path / "same/compare/loss_tokens.png").is_file()
    make_run(tmp_path, "D", points=30)
    config = tmp_path / "runs/D/config.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["data"]["folder"] = str(tmp_path / "elsewhere")
    tree["tokenizer"] = {"kind": "bpe", "vocab_size": 300}
    config.write_text(yaml.safe_dump(tree))
    with pytest.raises(RecipeError, match="bits per byte"):
        compare_runs([runs[0], tmp_path / "runs/D"], tmp_path / "other", by="loss")
    compare_runs([runs[0], tmp_path / "runs/D"], tmp_path / "other")
    text = (tmp_path / "other/compare.md").read_text()
    assert "tokenizers differ" in text and "ppl per token" not in text


def test_an_unfinished_run_says_so(runs: list[Path], tmp_path: Path) -> None:
    make_run(tmp_path, "D", points=60)
    status = tmp_path / "runs/D/status.json"
    status.write_text(json.dumps({"state": "diverged"}))
    compare_runs([runs[0], tmp_path / "runs/D"], tmp_path / "out")
    text = (tmp_path / "out/compare.md").read_text()
    assert "**D (unfinished: diverged, 600 of 600 steps): 1.00x FLOPs" in text
    status.unlink()
    assert "no ending written" in read_summary(tmp_path / "runs/D").label


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
    assert "(compare/quality.png)" in text
    assert "money.png" not in text  # without a price there is none
    assert "nats" not in parsed.text  # losses per token are only compared when asked for


def test_caveats(runs: list[Path]) -> None:
    first, second = read_summary(runs[0]), read_summary(runs[1])
    assert caveats([first, second]) == []
    assert "tokenizers differ" in caveats([first, replace(second, tokenizer="other")])[0]
    assert "different text" in caveats([first, replace(second, text="other")])[0]
    assert (
        "first 512 tokens" in caveats([first, replace(second, stretch="its first 512 tokens")])[0]
    )
    assert ("heldout", "ppl_per_token") in comparable([first, second])[0].measures
    other = comparable([first, replace(second, tokenizer="other")])
    assert ("heldout", "ppl_per_token") not in other[0].measures
    assert ("heldout", "bits_per_byte") in other[0].measures


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
    assert "**sparse: 0.35x FLOPs, 0.35x hours, -1.7 % bits per byte**" in text  # one seed, no rule
    assert "| sentiment | accuracy | 71.2 % ± 0.0 % | 71.2 % ± – |" in text
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
    text = study_table({"arm": runs}, tmp_path / "out", "Study", missing=["arm-seed3"]).read_text()
    assert "| sentiment | accuracy | – |" in text
    assert "failed before: arm-seed3" in text


def test_arms_are_the_same_within_the_spread_of_their_seeds(runs: list[Path]) -> None:
    base = read_summary(runs[0])
    arm = lambda *values: [  # noqa: E731
        replace(base, bits_per_byte=2.0, measures={ACCURACY: Measure(value)}) for value in values
    ]
    close, far = arm(0.69, 0.72), arm(0.90, 0.91)
    first = arm(0.70, 0.72)
    assert "same sentiment accuracy within the spread" in arm_verdict("x", close, first)
    assert "better sentiment accuracy (+19.5 points)" in arm_verdict("x", far, first)
    assert "+0.0 % bits per byte (the same within" in arm_verdict("x", close, first)
    assert "sentiment" not in arm_verdict("x", arm(0.5), first)  # one seed has no spread


def test_a_study_is_summed_up_as_it_stands(tmp_path: Path) -> None:
    recipe = make_run(tmp_path, "dense-seed1", points=30)
    make_run(tmp_path, "sparse-seed1", points=30, bits=2.3, cost=0.5)
    study = tmp_path / "study.yaml"
    grid = {
        "name": "runs", "folder": str(tmp_path), "recipe": str(recipe), "seeds": [1, 2],
        "arms": {"dense": [], "sparse": ["optim.lr=0.001"]},
    }  # fmt: skip
    study.write_text(yaml.safe_dump({"grid": grid}))
    table = summarise_study(study, price=2.0)
    text = table.read_text()
    assert table == tmp_path / "runs/table.md"
    assert "**sparse: 0.50x FLOPs, 0.50x hours, 0.50x money, -4.2 % bits per byte**" in text
    assert "failed before: dense-seed2, sparse-seed2" in text
    for name in ("dense-seed1", "sparse-seed1"):
        (tmp_path / "runs" / name / "metrics.jsonl").unlink()
    with pytest.raises(RecipeError, match="none of its runs has trained"):
        summarise_study(study)


def test_the_commands(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", *map(str, runs[:2]), "--out", str(tmp_path), "--price", "2.5"]
    assert run_main(main, words) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "compare.html")
    assert run_main(main, [*words[:2], "--out", str(tmp_path)]) == 2
    assert "give at least two" in capsys.readouterr().err
    assert run_main(main, ["audit", str(runs[0])]) == 3
    assert "make an export" in capsys.readouterr().err
