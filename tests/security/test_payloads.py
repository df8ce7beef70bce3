"""Files that try to run code when they are read: every kind that this project reads is planted.

The payload creates a canary file; it must never appear, and the reader must refuse.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import DataError, PipelineError
from data_prep.manifest import FileRecord, inside, read_manifest
from data_prep.shards import Prepared
from data_prep.tokenizers import load_tokenizer
from pipeline.export.hf import load_trained
from pipeline.recipe import load_recipe
from pipeline.train.checkpoint import find_checkpoint, resolve_resume
from tests.e2e.commands import python
from tests.pipeline.tiny import write_recipe
from tests.ranks import run_ranks


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.canary), os.O_CREAT | os.O_WRONLY)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def plant(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(canary)))


def test_the_payload_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = write_recipe(tmp_path_factory.mktemp("run"), "transformer", run__steps=4)
    for stage in ("pretrain", "export"):
        result = python("-m", "pipeline", stage, recipe)
        assert result.returncode == 0, result.stderr
    return recipe


def copied(trained: Path, folder: Path) -> tuple[Path, Path]:
    """(recipe, run folder): a copy of the run that may be spoiled."""
    shutil.copytree(trained.parent, folder / "copy")
    recipe = folder / "copy" / trained.name
    recipe.write_text(recipe.read_text().replace(str(trained.parent), str(recipe.parent)))
    return recipe, folder / "copy/runs/transformer"


# Checkpoints --------------------------------------------------------------------------------------


def rewritten_manifest(checkpoint: Path) -> None:
    """The manifest as an attacker would leave it: every hash is that of the planted files."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"] = [
        FileRecord.of(checkpoint / entry["path"], checkpoint).as_json()
        for entry in manifest["files"]
    ]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def refusal_to_resume(rank: int, recipe: Path) -> str | None:
    """The message with which a resumed run is refused, None when it starts; in a process."""
    from pipeline.train.engine import init_distributed
    from pipeline.train.start import start_run

    init_distributed(1)
    try:
        start_run(load_recipe(recipe, ["run.resume=must"]))
    except PipelineError as error:
        return str(error)
    return None


def test_no_file_of_a_checkpoint_runs_code(trained: Path, tmp_path: Path, canary: Path) -> None:
    recipe, run = copied(trained, tmp_path)
    checkpoint, prepared = run / "checkpoints/global_step4", recipe.parent / "prepared-transformer"
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    kinds = {path.suffix for path in files}
    assert kinds <= {".json", ".safetensors"}
    for path in files:
        content = path.read_bytes()
        plant(path, canary)
        if path.name != "manifest.json":
            rewritten_manifest(checkpoint)
        (refused,) = run_ranks(1, refusal_to_resume, recipe)
        assert refused and not canary.exists(), path
        # An export reads weights and clock, and has no use for the rest.
        read = path.parent.name == "state" or path.name == "trainer.json"
        with pytest.raises(PipelineError) if read else contextlib.suppress(PipelineError):
            load_trained(load_recipe(recipe), Prepared.open(prepared), checkpoint)
        assert not canary.exists(), path
        path.write_bytes(content)


@pytest.mark.parametrize("content", ["../../elsewhere/global_step4", "/etc", "..", "a/b", "\0", ""])
def test_latest_cannot_lead_out_of_the_folder(trained: Path, tmp_path: Path, content: str) -> None:
    _, run = copied(trained, tmp_path)
    shutil.copytree(run / "checkpoints", tmp_path / "copy/elsewhere")
    (run / "checkpoints/latest").write_text(content)
    for resume in ("must", "auto"):
        found = resolve_resume(resume, run / "checkpoints")
        assert found == run / "checkpoints/global_step4"


def test_the_name_of_a_checkpoint_cannot_lead_out_of_the_folder(
    trained: Path, tmp_path: Path
) -> None:
    _, run = copied(trained, tmp_path)
    shutil.copytree(run / "checkpoints", tmp_path / "copy/elsewhere")
    for name in ("../../../elsewhere/global_step4", "/etc", "..", "global_step4/../global_step4"):
        with pytest.raises(PipelineError, match="not a checkpoint name"):
            find_checkpoint(run / "checkpoints", name)


# Exports ------------------------------------------------------------------------------------------


def hostile_code(folder: Path, canary: Path) -> None:
    (folder / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    for name in ("configuration_evil.py", "tokenization_evil.py", "__init__.py"):
        shutil.copy(folder / "modeling_evil.py", folder / name)


AUTO_MAP = {
    "AutoConfig": "configuration_evil.Evil",
    "AutoModelForCausalLM": "modeling_evil.Evil",
    "AutoTokenizer": ["tokenization_evil.Evil", None],
}


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": AUTO_MAP},
        {"auto_map": AUTO_MAP, "model_type": "evil", "architectures": ["Evil"]},
        {"auto_map": AUTO_MAP, "model_type": "mlstm"},
        {"attn_implementation": "evil/kernels", "_attn_implementation": "evil/kernels"},
        {"_target_": "os.system", "class_path": "os.system"},
        {"quantization_config": {"quant_method": "evil", "modules_to_not_convert": ["x"]}},
    ],
)
def test_code_beside_an_export_is_never_imported(
    trained: Path, tmp_path: Path, canary: Path, changes: dict[str, object]
) -> None:
    from pipeline.evaluate.model import LanguageModel

    export = tmp_path / "export"
    shutil.copytree(trained.parent / "runs/transformer/export", export)
    hostile_code(export, canary)
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((export / name).read_text())
        (export / name).write_text(json.dumps(content | changes))
    try:
        LanguageModel.load(export, "cpu")
    except PipelineError:
        pass
    assert not [p for p in (Path.home() / ".cache/huggingface/modules").rglob("*evil*")]


def test_no_file_of_an_export_runs_code(trained: Path, tmp_path: Path, canary: Path) -> None:
    from pipeline.evaluate.model import LanguageModel

    export = tmp_path / "export"
    shutil.copytree(trained.parent / "runs/transformer/export", export)
    needed = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_card.json"}
    for path in sorted(path for path in export.rglob("*") if path.is_file()):
        content = path.read_bytes()
        plant(path, canary)
        try:
            LanguageModel.load(export, "cpu")
            assert path.name not in needed, f"{path.name} was taken for good"
        except PipelineError:
            pass
        path.write_bytes(content)
    (export / "model.safetensors").unlink()
    plant(export / "pytorch_model.bin", canary)
    with pytest.raises(DataError, match="holds no model that can be loaded|export the run again"):
        LanguageModel.load(export, "cpu")


# Prepared data and tokenizers ---------------------------------------------------------------------


@pytest.fixture
def prepared(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained.parent / "prepared-transformer", tmp_path / "prepared")
    return tmp_path / "prepared"


def test_no_file_of_prepared_data_runs_code(prepared: Path, canary: Path) -> None:
    manifest = (prepared / "manifest.json").read_text()
    for path in sorted(path for path in prepared.rglob("*") if path.is_file()):
        content = path.read_bytes()
        plant(path, canary)
        listed = path.name == "manifest.json" or path.name in manifest
        try:
            opened = Prepared.open(prepared)
            opened.tokenizer()
            opened.split("train").read(0, 10)
            assert not listed, f"{path} was taken for good"
        except DataError:
            pass
        path.write_bytes(content)


def test_no_file_of_a_tokenizer_runs_code(prepared: Path, canary: Path) -> None:
    folder = prepared / "tokenizer"
    hostile_code(folder, canary)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"auto_map": AUTO_MAP}))
    load_tokenizer(folder)
    for name in ("tokenizer.json", "tokenizer_card.json"):
        content = (folder / name).read_bytes()
        plant(folder / name, canary)
        with pytest.raises(DataError):
            load_tokenizer(folder)
        (folder / name).write_bytes(content)


def test_code_beside_a_tokenizer_is_not_copied_into_an_export(
    trained: Path, tmp_path: Path, canary: Path
) -> None:
    recipe, run = copied(trained, tmp_path)
    tokenizer = recipe.parent / "prepared-transformer/tokenizer"
    hostile_code(tokenizer, canary)
    (tokenizer / "secret").symlink_to("/etc/hostname")
    result = python("-m", "pipeline", "export", recipe, f"export.folder={tmp_path / 'new'}")
    assert result.returncode == 0, result.stderr
    names = {path.name for path in (tmp_path / "new").rglob("*")}
    assert not {name for name in names if "evil" in name or name in ("secret", "__init__.py")}


def test_an_array_of_objects_is_refused(tmp_path: Path, canary: Path) -> None:
    from data_prep.duplicates import merge_dropped
    from data_prep.leaks import LeakIndex

    np.save(tmp_path / "exact-0.npy", np.array([Payload(canary)], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle|Python objects"):
        merge_dropped(tmp_path, "exact", 1)
    names = ("names", "sizes", "lengths", "grams", "offsets", "examples")
    objects = {name: np.array([Payload(canary)], object) for name in names}
    np.savez(tmp_path / "leaks.npz", **objects)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allow_pickle|Python objects"):
        LeakIndex.load(tmp_path / "leaks.npz")


# Manifests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..", "link/x", "link"])
def test_a_manifest_cannot_name_files_outside(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leads out of the folder"):
        inside(root, name)
    assert inside(root, "a/b") == root / "a/b"


@pytest.mark.parametrize("kind", ["shard", "output", "tokenizer"])
def test_prepared_data_cannot_lead_elsewhere(prepared: Path, tmp_path: Path, kind: str) -> None:
    path = prepared / "manifest.json"
    manifest = json.loads(path.read_text())
    shutil.copytree(prepared, tmp_path / "other")
    if kind == "tokenizer":
        manifest["tokenizer"]["folder"] = "../other/tokenizer"
    elif kind == "shard":
        shard = manifest["splits"]["train"]["shards"][0]
        shard["path"] = f"../other/{shard['path']}"
    else:
        manifest["outputs"][0]["path"] = str(tmp_path / "other" / manifest["outputs"][0]["path"])
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="leads out of the folder"):
        Prepared.open(prepared)


@pytest.mark.parametrize("name", ["../../../precious", "..", ".", "../../..", "/precious"])
def test_an_altered_stage_manifest_moves_nothing_of_others(
    trained: Path, tmp_path: Path, name: str
) -> None:
    from pipeline.stages.graph import stage_called
    from pipeline.stages.runner import move_aside

    path, run = copied(trained, tmp_path)
    precious = tmp_path / "copy/precious"
    precious.mkdir()
    manifest = json.loads((run / "stages/export.json").read_text())
    name = str(precious) if name.startswith("/") else name
    (run / "stages/export.json").write_text(json.dumps(manifest | {"belongs": [name]}))
    before = sorted(run.iterdir())
    move_aside(stage_called("export"), load_recipe(path))
    assert precious.is_dir() and set(before) <= set(run.iterdir())


def test_a_json_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="not JSON"):
        read_manifest(tmp_path / "manifest.json")
