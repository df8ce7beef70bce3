"""Measures read by their form, and the rule for `same` against slow ways to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.evaluate.accuracy import outcomes
from pipeline.report.quality import (
    Measure,
    judge,
    ratio_limits,
    read_measures,
    smaller_is_better,
    written,
)
from pipeline.run_folder import RunFolder


def read(tmp_path: Path, **files: Any) -> dict[tuple[str, str], Measure]:
    (tmp_path / "evals").mkdir()
    for name, content in files.items():
        (tmp_path / "evals" / f"{name}.json").write_text(json.dumps(content))
    return read_measures(RunFolder(tmp_path))


def test_tasks_of_a_list_have_their_own_names(tmp_path: Path) -> None:
    easy = {"task": "arc_easy", "shots": 0, "examples": 9, "accuracy": 0.5, "interval": [0.4, 0.6]}
    found = read(tmp_path, tasks=[easy, easy | {"shots": 5, "accuracy": 0.7}], samples=[{"t": 1}])
    assert {name: (m.value, m.interval, m.examples) for name, m in found.items()} == {
        ("arc_easy (0 shots)", "accuracy"): (0.5, (0.4, 0.6), None),
        ("arc_easy (5 shots)", "accuracy"): (0.7, (0.4, 0.6), None),
    }


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_classifier_is_read_with_its_intervals_wherever_it_lies(
    tmp_path: Path, elsewhere: bool
) -> None:
    folder = tmp_path / ("classifiers/mine" if elsewhere else "finetune")
    folder.mkdir(parents=True)
    limits = {"accuracy": [0.7, 0.9], "macro_f1": [0.6, 0.8]}
    content = {"accuracy": 0.8, "macro_f1": 0.7, "interval": [0.7, 0.9], "intervals": limits}
    (folder / "metrics.json").write_text(json.dumps(content))
    if elsewhere:
        (tmp_path / "stages").mkdir()
        outputs = [{"path": "../classifiers/mine/metrics.json"}]
        (tmp_path / "stages/finetune.json").write_text(json.dumps({"outputs": outputs}))
    found = read_measures(RunFolder(tmp_path))
    assert {metric: m.interval for (task, metric), m in found.items() if task == "finetune"} == {
        "accuracy": (0.7, 0.9), "macro_f1": (0.6, 0.8)
    }  # fmt: skip


def test_every_form_of_result_is_read(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        heldout={"bits_per_byte": 2.1, "tokens": 7, "split": "test"},
        sentiment={"accuracy": 0.7, "interval": [0.6, 0.8], "tfidf_accuracy": 0.5, "C": 1.0},
        transfer={"sst": {"accuracy": 0.8, "interval": [0.7, 0.9], "histogram": {"edges": [1.0]}}},
        last_word={"lambada": {"accuracy": 0.2, "interval": [0.1, 0.3], "ppl_per_word": 9.0}},
        tasks={
            "easy": {
                "accuracy": 0.4,
                "interval": [0.3, 0.5],
                "accuracy_normalised": 0.5,
                "interval_normalised": [0.4, 0.6],
                "chance": 0.25,
            },
            "piqa": {"acc_norm": {"value": 0.6, "low": 0.5, "high": 0.7}},
            "arc": {"logic": {"value": 3.0, "interval": [2.0, 4.0]}},
            "sst": {"accuracy": {"value": 0.1, "low": 0.0, "high": 0.2}},
        },
        samples=[{"text": "a"}],
        audit={"accuracy": 1.0},
    )
    assert {name: (m.value, m.interval) for name, m in found.items()} == {
        ("heldout", "bits_per_byte"): (2.1, None),
        ("sentiment", "accuracy"): (0.7, (0.6, 0.8)),
        ("transfer/sst", "accuracy"): (0.8, (0.7, 0.9)),
        ("lambada", "accuracy"): (0.2, (0.1, 0.3)),
        ("lambada", "ppl_per_word"): (9.0, None),
        ("easy", "accuracy"): (0.4, (0.3, 0.5)),
        ("easy", "accuracy_normalised"): (0.5, (0.4, 0.6)),
        ("piqa", "acc_norm"): (0.6, (0.5, 0.7)),
        ("arc", "logic"): (3.0, (2.0, 4.0)),
        ("sst", "accuracy"): (0.1, (0.0, 0.2)),
    }
    assert written(found["sentiment", "accuracy"], "accuracy") == "70.0 % [60.0, 80.0]"
    assert written(found["arc", "logic"], "logic") == "3.000 [2.000, 4.000]"


@pytest.mark.parametrize(
    ("ours", "theirs", "metric", "word"),
    [
        ((0.7, 0.6, 0.8), (0.75, 0.65, 0.85), "accuracy", "same"),
        ((0.9, 0.86, 0.94), (0.75, 0.65, 0.85), "accuracy", "better"),
        ((9.0, 8.0, 10.0), (6.0, 5.0, 7.0), "ppl_per_word", "worse"),
    ],
)
def test_intervals_that_overlap_are_the_same(
    ours: tuple[float, ...], theirs: tuple[float, ...], metric: str, word: str
) -> None:
    found = judge(Measure(*ours), Measure(*theirs), metric)
    assert found is not None and found.word == word
    assert judge(Measure(ours[0]), Measure(*theirs), metric) is None


def test_paired_answers_tell_more_than_intervals() -> None:
    """1,000 questions; one run is right on 30 more, and wrong nowhere else."""
    random = np.random.default_rng(0)
    base = random.random(1000) < 0.6
    ours = base.copy()
    ours[np.flatnonzero(~base)[:30]] = True
    texts = [str(number) for number in range(1000)]

    def measure(correct: np.ndarray, names: list[str]) -> Measure:
        # limits of an accuracy near 0.6 over 1,000 texts are 0.03 to either side
        mean = float(correct.mean())
        return Measure(mean, mean - 0.03, mean + 0.03, **outcomes(correct, names))

    assert outcomes(base, texts)["correct"].count("1") == base.sum()
    found = judge(measure(ours, texts), measure(base, texts), "accuracy")
    assert found is not None and found.word == "better" and found.paired is not None
    # exact: 30 of 1,000 differ, all one way
    exact = binomtest(30, 1000).proportion_ci(0.95)
    np.testing.assert_allclose(found.paired, (exact.low, exact.high), atol=0.003)
    other = judge(measure(ours, texts), measure(base, texts[::-1]), "accuracy")
    assert other is not None and other.word == "same" and other.paired is None  # other texts


def test_ratio_limits_hold_the_true_ratio() -> None:
    random = np.random.default_rng(1)
    base = random.gamma(2.0, 100.0, 400)
    values = base * random.normal(1.05, 0.1, 400)
    value, low, high = ratio_limits(values, base)
    assert value == pytest.approx(values.sum() / base.sum() - 1)
    assert low < 0.05 < high and high - low < 0.04
    slow = []
    for _ in range(400):
        drawn = random.choice(400, 400)
        slow.append(sum(values[i] for i in drawn) / sum(base[i] for i in drawn) - 1)
    np.testing.assert_allclose((low, high), np.quantile(slow, [0.025, 0.975]), atol=0.004)


def test_the_direction_of_metrics() -> None:
    less = ("bits_per_byte", "ppl_per_word", "perplexity", "loss")
    assert [smaller_is_better(name) for name in less] == [True] * 4
    assert not any(map(smaller_is_better, ("accuracy", "mcc", "auroc", "acc_norm", "f1")))
