"""Bad input: one message, the documented exit code, nothing overwritten or lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data_prep.prepare import prepare
from tests.e2e.commands import python, refused
from tests.pipeline.tiny import write_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose run is finished and exported; tests change copies or put things back."""
    recipe = write_recipe(tmp_path_factory.mktemp("run"), "mlstm")
    for stage in ("pretrain", "export"):
        assert python("-m", "pipeline", stage, recipe).returncode == 0
    return recipe


def snapshot(folder: Path) -> dict[str, bytes]:
    # The lock names who held it last; it is no content of a run.
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=1", ["optim.lrr", "did you mean 'lr'"]),
        ("optm.lr=1", ["unknown section", "optim"]),
        ("optim.lr=fast", ["optim.lr", "fast"]),
        ("run.steps=2.5", ["run.steps", "2.5"]),
        ("model.kind=lstm", ["model", "mlstm"]),
        ("batch.micro_batch=3", ["micro_batch 3", "global_batch 8"]),
        ("batch.global_batch=4096", ["lanes", "tokens"]),
        ("optim.warmup_steps=50", ["warmup_steps"]),
        pytest.param(
            "precision.dtype=fp16",
            ["fp16", "GPU"],
            marks=pytest.mark.skipif(
                torch.ops.mkldnn._is_mkldnn_fp16_supported(),
                reason="this processor computes in fp16",
            ),
        ),
        ("engine.template=/nowhere.json", ["/nowhere.json"]),
    ],
)
def test_a_wrong_recipe_is_refused_with_2_or_3(
    trained: Path, override: str, words: list[str]
) -> None:
    run = trained.parent / "runs"
    before = snapshot(run)
    code = 3 if "4096" in override else 2
    refused(python("run_pretrain.py", trained, override, "run.name=fresh"), code, *words)
    assert snapshot(run) == before or not (run / "fresh/metrics.jsonl").exists()


def test_missing_and_empty_corpus(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "mlstm")
    where = f"data.folder={tmp_path / 'other'}"
    missing = python(
        "-m", "data_prep", "prepare", recipe, where, "data.sources.0.path=/nowhere.jsonl"
    )
    refused(missing, 3, "/nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    empty = python(
        "-m", "data_prep", "prepare", recipe, where, f"data.sources.0.path={tmp_path}/empty.jsonl"
    )
    refused(empty, 3, "no document is left", "data.sources")
    assert not (tmp_path / "other").exists()


def test_no_prepared_data(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "mlstm")
    result = python("run_pretrain.py", recipe, f"data.folder={tmp_path / 'none'}")
    refused(result, 3, "data_prep prepare")


def test_a_flipped_byte_in_a_shard(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "mlstm")
    shard = next((tmp_path / "prepared-mlstm").glob("train-*.shard"))
    content = bytearray(shard.read_bytes())
    content[300] ^= 1
    shard.write_bytes(content)
    refused(python("run_pretrain.py", recipe), 3, shard.name, "xxh3")
    assert not (tmp_path / "runs").exists()


def test_shards_of_another_tokenizer(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "transformer")
    refused(
        python("run_pretrain.py", recipe, "tokenizer.vocab_size=290"), 3, "tokenizer", "prepare"
    )
    other = write_recipe(
        tmp_path, "transformer", tokenizer__vocab_size=290, data__folder=str(tmp_path / "b")
    )
    prepare(other)
    for name in ("tokenizer.json", "tokenizer_card.json"):  # a tokenizer folder of the same shape
        (tmp_path / "prepared-transformer/tokenizer" / name).write_bytes(
            (tmp_path / "b/tokenizer" / name).read_bytes()
        )
    refused(python("run_pretrain.py", recipe), 3, "tokenizer")


def test_a_checkpoint_without_its_manifest(trained: Path) -> None:
    checkpoint = trained.parent / "runs/mlstm/checkpoints/global_step6"
    manifest = checkpoint / "manifest.json"
    content = manifest.read_bytes()
    manifest.unlink()
    try:
        before = snapshot(trained.parent / "runs")
        refused(python("run_pretrain.py", trained), 3, "manifest.json", "global_step6")
        refused(python("run_pretrain.py", trained, f"run.resume={checkpoint}"), 3, "manifest.json")
        assert snapshot(trained.parent / "runs") == before
    finally:
        manifest.write_bytes(content)


def test_another_model_in_the_same_run_folder(trained: Path) -> None:
    before = snapshot(trained.parent / "runs/mlstm")
    refused(
        python("run_pretrain.py", trained, "model.hidden=8"),
        2,
        "model.hidden: 24 in the checkpoint, 8 now",
    )
    refused(python("run_pretrain.py", trained, "run.resume=never"), 2, "run.resume=never")
    refused(
        python("run_pretrain.py", trained, "run.resume=must", "run.name=none"), 2, "no checkpoint"
    )
    assert snapshot(trained.parent / "runs/mlstm") == before


def test_an_export_folder_that_exists_already(trained: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    before = json.loads((trained.parent / "runs/mlstm/stages/export.json").read_text())
    refused(python("-m", "pipeline", "export", trained, f"export.folder={mine}"), 2, str(mine))
    assert snapshot(mine) == {"notes.txt": b"keep me"}
    assert before["stage"] == "export"


def test_a_stage_before_its_time(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "mlstm")
    refused(python("-m", "pipeline", "evaluate", recipe), 2, "python -m pipeline export")


def test_a_run_that_diverges_ends_with_4(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, "transformer", optim__lr=1e30, optim__max_skipped_steps=3, run__steps=30
    )
    refused(python("run_pretrain.py", recipe), 4, "non-finite")
    status = json.loads((tmp_path / "runs/transformer/status.json").read_text())
    assert status["state"] == "diverged"
