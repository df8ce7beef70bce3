"""All stages on a tiny corpus, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.commands import python
from tests.pipeline.tiny import write_corpus, write_recipe

RUN_FILES = [
    "config.yaml", "ds_config.json", "env.json", "command.txt", "metrics.jsonl", "status.json",
    "report.html", "report.md", "export/model.safetensors",
]  # fmt: skip
STAGES = ["prepare", "pretrain", "export", "evaluate", "report"]


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    """Rated texts whose sentiment shows in their words."""
    path = tmp_path / "rated.jsonl"
    with path.open("w") as out:
        for i in range(120):
            words = "good and great" if i % 2 else "bad not nice"
            row = {"text": f"tea number {i} was {words}", "valence": (i % 2) * 4 - 2}
            out.write(json.dumps(row) + "\n")
    return path


def outcome(stdout: str) -> dict[str, str]:
    """Stage -> what was said of it last."""
    lines = [line.split(maxsplit=1) for line in stdout.splitlines() if line.split(maxsplit=1)[:1]]
    return {words[0]: words[1] for words in lines if len(words) == 2 and words[0] in STAGES}


@pytest.mark.parametrize("kind", [pytest.param("mlstm", marks=pytest.mark.long), "transformer"])
def test_every_stage_runs_once_and_a_change_runs_what_depends_on_it(
    tmp_path: Path, rated: Path, kind: str
) -> None:
    sentiment = {"path": str(rated), "bootstrap_samples": 50}
    recipe = write_recipe(tmp_path, kind, eval__sentiment=sentiment, eval__prompts=["the tea"])
    run = tmp_path / "runs" / kind
    first = python("-m", "pipeline", "run", recipe)
    assert first.returncode == 0, first.stdout + first.stderr
    assert str(run / "report.html") in first.stdout
    for name in RUN_FILES:
        assert (run / name).is_file(), name
    assert json.loads((run / "status.json").read_text())["state"] == "finished"

    second = python("-m", "pipeline", "run", recipe)
    assert all("up to date" in said for said in outcome(second.stdout).values()), second.stdout
    assert set(outcome(second.stdout)) == set(STAGES)

    weights = (run / "export/model.safetensors").stat().st_mtime_ns
    third = python("-m", "pipeline", "run", recipe, "eval.temperature=0.5")
    said = outcome(third.stdout)
    assert "up to date" in said["pretrain"] and "up to date" in said["export"]
    assert "done" in said["evaluate"] and "done" in said["report"], third.stdout
    assert (run / "export/model.safetensors").stat().st_mtime_ns == weights
    assert (run / "superseded/evaluate-1").is_dir()  # moved aside, not lost


@pytest.mark.long
def test_a_changed_model_trains_again_and_keeps_the_old_run(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "mlstm")
    assert python("-m", "pipeline", "pretrain", recipe).returncode == 0
    again = python("-m", "pipeline", "pretrain", recipe, "model.hidden=16")
    assert again.returncode == 0, again.stderr
    run = tmp_path / "runs/mlstm"
    assert (run / "superseded/pretrain-1/checkpoints/global_step6/manifest.json").is_file()
    assert "hidden: 16" in (run / "config.yaml").read_text()


@pytest.mark.long
def test_new_text_runs_everything_again(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "mlstm")
    assert python("-m", "pipeline", "pretrain", recipe).returncode == 0
    write_corpus(tmp_path / "corpus.jsonl", documents=150, seed=9)
    status = python("-m", "pipeline", "status", recipe).stdout
    assert "input changed" in outcome(status)["prepare"]


def test_study_runs_all_arms_and_skips_them_the_second_time(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "mlstm")
    study = tmp_path / "study.yaml"
    name = f"test-{tmp_path.name}"
    study.write_text(
        f"grid:\n  name: {name}\n  recipe: {recipe}\n  folder: {tmp_path / 'runs'}\n"
        "  seeds: [1, 2]\n  stages: [pretrain]\n"
        "  arms: {small: [model.hidden=8], large: [model.hidden=16]}\n"
    )
    first = python("-m", "pipeline", "run", study)
    assert first.returncode == 0, first.stdout + first.stderr
    out = tmp_path / "runs" / name
    assert "small" in (out / "table.md").read_text() and (out / "compare.html").is_file()
    assert len(list(out.glob("*-seed*/metrics.jsonl"))) == 4
    second = python("-m", "pipeline", "run", study)
    assert second.stdout.count("pretrain  up to date") == 4


def test_init_writes_a_recipe_that_trains(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "mine.jsonl", documents=400)
    recipe = tmp_path / "mine.yaml"
    made = python("-m", "pipeline", "init", corpus, "--minutes", "0.05", "--out", recipe)
    assert made.returncode == 0, made.stderr
    folder = f"data.folder={tmp_path / 'prepared'}"
    prepared = python("-m", "data_prep", "prepare", recipe, folder)
    assert prepared.returncode == 0, prepared.stderr
    short = [f"run.folder={tmp_path}", "run.steps=3", "optim.warmup_steps=1"]
    trained = python("-m", "pipeline", "pretrain", recipe, folder, *short)
    assert trained.returncode == 0, trained.stdout + trained.stderr
