from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PREPARE, ROOT, sample_texts, write_jsonl

import data_prep.prepare as stage
from data_prep.errors import DataError, RecipeError
from data_prep.plan import prepare_status
from data_prep.prepare import prepare
from data_prep.reading import ReadJob
from data_prep.recipe.loader import read_tree
from data_prep.shards import Prepared, Split

BPE = "tokenizer={kind: bpe, vocab_size: 300}"


def documents(split: Split) -> list[str]:
    starts = [0, *split.document_ends[:-1].tolist()]
    ends = split.document_ends.tolist()
    parts = [split.read(s, e) for s, e in zip(starts, ends, strict=True)]
    return [bytes(part.tolist()).decode()[2:-1] for part in parts]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.shard"))}


def test_every_document_arrives_once(recipe: Path) -> None:
    manifest = prepare(recipe)
    prepared = Prepared.open("prepared")
    splits = {name: prepared.split(name) for name in ("train", "validation", "test")}
    found = [text for split in splits.values() for text in documents(split)]
    assert sorted(found) == sorted(sample_texts()) and found != sample_texts()
    for name, split in splits.items():
        texts = documents(split)
        assert split.documents == len(texts) > 0
        assert split.bytes == sum(len(text.encode()) for text in texts)
        assert split.characters == sum(map(len, texts))
        starts = [0, *split.document_ends[:-1].tolist()]
        assert np.flatnonzero(split.resets(np.array([0]), split.tokens)).tolist() == starts[::3]
        assert manifest["splits"][name]["tokens"] == split.tokens == split.bytes + 3 * len(texts)
    assert len(manifest["splits"]["train"]["shards"]) > 1
    assert not Path("prepared.tmp").exists()


def test_unigram_bits_per_byte(recipe: Path) -> None:
    manifest = prepare(recipe)
    prepared = Prepared.open("prepared")
    train = np.frombuffer("".join(documents(prepared.split("train"))).encode(), np.uint8)
    held = np.frombuffer("".join(documents(prepared.split("test"))).encode(), np.uint8)
    share = (np.bincount(train, minlength=256) + 1) / (len(train) + 256)
    found = manifest["splits"]["test"]["unigram_bits_per_byte"]
    assert found == pytest.approx(-np.log2(share[held]).mean())
    assert "unigram_bits_per_byte" not in manifest["splits"]["train"]


@pytest.mark.parametrize("overrides", [[], [BPE]])
def test_two_runs_write_the_same_bytes(recipe: Path, overrides: list[str]) -> None:
    prepare(recipe, [*overrides, "data.folder=a"])
    prepare(recipe, [*overrides, "data.folder=b"])
    assert shard_bytes(Path("a")) == shard_bytes(Path("b"))
    assert Prepared.open("a").fingerprint == Prepared.open("b").fingerprint


def test_file_names_and_order_do_not_matter_but_the_seed_does(recipe: Path) -> None:
    prepare(recipe)
    Path("corpus.jsonl").unlink()
    write_jsonl(Path("corpus-z.jsonl"), sample_texts()[:100][::-1])
    write_jsonl(Path("corpus-a.jsonl"), sample_texts()[100:])
    prepare(recipe, ["data.folder=again"])
    assert shard_bytes(Path("prepared")) == shard_bytes(Path("again"))
    prepare(recipe, ["data.folder=seeded", "data.seed=1"])
    first, second = (Prepared.open(f).split("train") for f in ("prepared", "seeded"))
    assert documents(first) != documents(second)
    assert sorted(documents(first)) == sorted(documents(second))


def test_resets_may_be_off_and_test_may_be_empty(recipe: Path) -> None:
    prepare(recipe, ["data.reset_documents=0", "data.split.test=0"])
    prepared = Prepared.open("prepared")
    train = prepared.split("train")
    # The first token of the stream always is a reset.
    assert np.flatnonzero(train.resets(np.array([0]), train.tokens)).tolist() == [0]
    assert (prepared.split("test").tokens, prepared.split("test").documents) == (0, 0)


def test_a_second_run_does_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = prepare(recipe)
    before = Path("prepared/manifest.json").stat().st_mtime_ns
    assert prepare_status(read_tree(recipe)) is None
    capsys.readouterr()
    started = time.monotonic()
    assert prepare(recipe) == manifest
    assert time.monotonic() - started < 1
    assert capsys.readouterr().out == "prepared: up to date\n"
    assert Path("prepared/manifest.json").stat().st_mtime_ns == before
    shutil.copytree("prepared", "copied")
    assert prepare_status(read_tree(recipe, ["data.folder=copied"])) is None


def test_what_changed_is_made_anew_and_the_old_kept(
    recipe: Path, rewrite_corpus: Callable[[list[str]], None]
) -> None:
    prepare(recipe)
    old = shard_bytes(Path("prepared"))
    assert prepare_status(read_tree(recipe, ["data.seed=1"])) == "recipe changed"
    prepare(recipe, ["data.seed=1"])
    assert shard_bytes(Path("prepared.superseded-1")) == old != shard_bytes(Path("prepared"))
    rewrite_corpus([*sample_texts(), "one more"])
    assert "input changed: corpus.jsonl" in (
        prepare_status(read_tree(recipe, ["data.seed=1"])) or ""
    )
    prepare(recipe, ["data.seed=1"])
    assert Prepared.open("prepared.superseded-2").manifest["counts"]["records"]["read"] == 300
    assert Prepared.open("prepared").manifest["counts"]["records"]["read"] == 301


def test_force_makes_anew(recipe: Path) -> None:
    prepare(recipe)
    prepare(recipe, force=True)
    assert shard_bytes(Path("prepared.superseded-1")) == shard_bytes(Path("prepared"))


def test_foreign_folders_are_left_alone(recipe: Path) -> None:
    Path("prepared").mkdir()
    Path("prepared/thesis.txt").write_text("work")
    with pytest.raises(RecipeError, match="nothing was overwritten"):
        prepare(recipe)
    Path("prepared/manifest.json").write_text('{"stage": "train"}')
    with pytest.raises(RecipeError, match="nothing was overwritten"):
        prepare(recipe)
    assert Path("prepared/thesis.txt").read_text() == "work"


def test_remains_of_an_interrupted_run_are_cleared_but_nothing_else(recipe: Path) -> None:
    Path("prepared.tmp/work/encode").mkdir(parents=True)
    Path("prepared.tmp/work/encode/train-00000.done").write_text("{}")
    Path("prepared.tmp/train-00000.shard.tmp").write_text("half")
    Path("prepared.tmp/plan.json").write_text('{"recipe": "of yesterday", "read": []}')
    prepare(recipe)
    names = {path.name for path in Path("prepared").iterdir()}
    assert "train-00000.shard" in names
    assert not {"work", "plan.json", "train-00000.shard.tmp"} & names
    Path("prepared.tmp").mkdir()
    Path("prepared.tmp/mine").write_text("work")
    with pytest.raises(RecipeError, match="in the way"):
        prepare(recipe, force=True)
    assert Path("prepared.tmp/mine").read_text() == "work"


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "no document is left after cleaning .no rows"),
        (["ab", " "], "no document is left after cleaning .*too_short 2"),
        (["only one text"] * 5, "split is empty .5 documents in all"),
    ],
)
def test_empty_corpora(
    recipe: Path, rewrite_corpus: Callable[[list[str]], None], texts: list[str], words: str
) -> None:
    rewrite_corpus(texts)
    with pytest.raises(DataError, match=words):
        prepare(recipe, ["data.clean.min_characters=3"])
    assert not Path("prepared").exists()


def test_an_input_that_changes_between_its_tasks(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is several tasks, and the first has hashed it as it was."""
    read_task = stage.read_task
    monkeypatch.setattr("data_prep.sources.TASK_BYTES", 4000)

    def read(job: ReadJob) -> dict[str, Any]:
        result = read_task(job)
        if job.number == 0:
            text = Path("corpus.jsonl").read_text()
            Path("corpus.jsonl").write_text(text.replace("quick", "QUICK"))
        return result

    monkeypatch.setattr(stage, "read_task", read)
    with pytest.raises(RecipeError, match="corpus.jsonl changed while it was being prepared"):
        prepare("recipe.yaml")
    assert not Path("prepared").exists()


def test_a_shard_too_large_for_memory_is_refused(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_SHARD_BYTES", 1000)
    with pytest.raises(RecipeError, match="tokens=5,000 is about .* expected 1,... at most"):
        prepare("recipe.yaml", ["data.shard_tokens=5000"])
    prepare("recipe.yaml", ["data.shard_tokens=1000"])


def test_duplicates_take_no_room_in_a_shard(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path("corpus.jsonl").read_text()
    Path("corpus.jsonl").write_text(text * 10)
    size = sum(len(t) for t in sample_texts())
    monkeypatch.setattr(stage, "_SHARD_BYTES", 2 * size)
    manifest = prepare("recipe.yaml", ["data.shard_tokens=1000000"])
    assert len(manifest["splits"]["train"]["shards"]) == 1


@pytest.mark.parametrize("twins", [[], ["data.duplicates.near=true"]])
def test_more_files_than_a_process_may_open(recipe: Path, twins: list[str]) -> None:
    Path("corpus.jsonl").unlink()
    for number in range(300):
        write_jsonl(Path(f"corpus-{number:03d}.jsonl"), [f"the text number {number // 2} of them"])
    command = [sys.executable, *PREPARE, "--workers", "1", "recipe.yaml", *twins]
    limited = ["sh", "-c", 'ulimit -S -n 128; exec "$@"', "sh", *command]
    done = subprocess.run(
        limited, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "exact_duplicate 150" in done.stdout


@pytest.mark.parametrize("verify", [None, True])
def test_a_flipped_byte_is_found(recipe: Path, verify: bool | None) -> None:
    prepare(recipe)
    path = Path("prepared/train-00001.shard")
    raw, status = bytearray(path.read_bytes()), path.stat()
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match="train-00001.shard: xxh3 differs"):
        Prepared.open("prepared", verify)


def edit_manifest(change: Callable[[Any], None]) -> None:
    path = Path("prepared/manifest.json")
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_another_tokenizer_is_refused(recipe: Path) -> None:
    prepare(recipe, ["data.folder=other", BPE])
    prepare(recipe)
    shutil.rmtree("prepared/tokenizer")
    shutil.copytree("other/tokenizer", "prepared/tokenizer")
    with pytest.raises(DataError, match="tokenizer/tokenizer.json: .* bytes"):
        Prepared.open("prepared")
    edit_manifest(lambda m: m.update(outputs=[]))
    with pytest.raises(DataError, match="shards of"):
        Prepared.open("prepared").tokenizer()


def test_manifests_that_cannot_be_trusted(recipe: Path) -> None:
    with pytest.raises(DataError, match="run `python -m data_prep prepare RECIPE`"):
        Prepared.open("prepared")
    prepare(recipe)
    edit_manifest(lambda m: m["splits"]["train"].update(tokens=1))
    with pytest.raises(DataError, match="its manifest says 1"):
        Prepared.open("prepared").split("train")
    edit_manifest(lambda m: m["outputs"].append({"path": "x"}))
    with pytest.raises(DataError, match="no file record"):
        Prepared.open("prepared")
    edit_manifest(lambda m: m.update(format=1))
    with pytest.raises(DataError, match="format 1; expected 'prepare', format 2"):
        Prepared.open("prepared")


def test_bpe_samples_the_train_split_only(recipe: Path) -> None:
    whole = prepare(recipe, [BPE])
    part = prepare(recipe, [BPE, "tokenizer.sample_megabytes=0.001", "data.folder=part"])
    assert whole["tokenizer"]["fingerprint"] != part["tokenizer"]["fingerprint"]
    prepared = Prepared.open("prepared")
    tokenizer, train = prepared.tokenizer(), prepared.split("train")
    text = tokenizer.decode(train.read(0, int(train.document_ends[0])))
    assert text in sample_texts()
