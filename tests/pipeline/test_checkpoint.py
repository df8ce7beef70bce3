"""Checkpoints are whole or not there; what is damaged is found and never loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.errors import DataError, PipelineError, RecipeError
from data_prep.manifest import FileRecord
from pipeline.recipe.checkpoint import CheckpointConfig
from pipeline.train import checkpoint
from pipeline.train.checkpoint import (
    Saving,
    begin,
    branch_off,
    find_checkpoint,
    list_checkpoints,
    problem,
    resolve_resume,
    tag_of,
)

STATE = "state/rank0.safetensors"
FILES = (STATE, "plugins/lanes.safetensors", "rng/rank0.safetensors")


def save(
    checkpoints: Path, step: int, keep_last: int = 9, text: str = "content", every: int = 0
) -> Path:
    tag = tag_of(step)
    folder = begin(checkpoints, tag, 100)
    for name in FILES[1:]:
        (folder / name).write_text(f"{text} {step} {name}")

    def write() -> list[FileRecord]:
        (folder / STATE).write_text(f"{text} {step}")
        return [FileRecord.of(folder / STATE, folder, fast=True)]

    keep = CheckpointConfig(keep_last=keep_last, keep_every_steps=every)
    Saving(checkpoints, tag, write).commit(keep)
    return checkpoints / tag


def names(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


def test_a_commit_lists_every_file_and_moves_latest(tmp_path: Path) -> None:
    folder = save(tmp_path, 7)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [f["path"] for f in manifest["files"]] == sorted(FILES)
    assert problem(folder) is None
    assert (tmp_path / "latest").read_text() == "global_step7"
    assert names(tmp_path) == ["global_step7", "latest"]


def test_the_manifest_comes_after_all_files_and_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    original = checkpoint.write_atomic

    def watch(path: Path, data: str) -> None:
        there = sorted(
            p.relative_to(tmp_path).as_posix()
            for p in tmp_path.rglob("rank0*")
            if p.parent.name == "state"
        )
        events.append(f"{path.relative_to(tmp_path)} with {there}")
        original(path, data)

    monkeypatch.setattr(checkpoint, "write_atomic", watch)
    save(tmp_path, 3)
    assert events == [
        "global_step3.tmp/manifest.json with ['global_step3.tmp/state/rank0.safetensors']",
        "latest with ['global_step3/state/rank0.safetensors']",
    ]


def test_an_unfinished_save_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (begin(tmp_path, "global_step2", 1) / STATE).write_text("half")
    assert [p.name for p in list_checkpoints(tmp_path)] == ["global_step1"]
    assert find_checkpoint(tmp_path).name == "global_step1"
    assert (tmp_path / "latest").read_text() == "global_step1"


def test_beginning_a_save_removes_what_killed_ones_left(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for left in ("global_step2.tmp", "global_step0.tmp", "global_step1.old.tmp"):
        (tmp_path / left / "plugins").mkdir(parents=True)
        (tmp_path / left / "trainer.json").write_text("half")
    folder = begin(tmp_path, "global_step2", 1)
    assert names(tmp_path) == ["global_step1", "global_step2.tmp", "latest"]
    assert sorted(p.name for p in folder.iterdir()) == ["plugins", "rng", "state"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_oldest_are_pruned(tmp_path: Path, keep: int) -> None:
    for step in (5, 9, 10, 100):  # 9 < 10 < 100 as numbers, not as text
        save(tmp_path, step, keep)
    left = [p.name for p in list_checkpoints(tmp_path)]
    assert left == [f"global_step{n}" for n in (100, 10, 9, 5)[:keep]]
    assert names(tmp_path) == sorted([*left, "latest"])


def test_multiples_stay_for_ever(tmp_path: Path) -> None:
    for step in (10, 15, 20, 25, 30, 35):
        save(tmp_path, step, keep_last=1, every=20)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["global_step35", "global_step20"]


def test_after_a_damaged_newer_one_the_only_good_one_is_kept(tmp_path: Path) -> None:
    truncate(save(tmp_path, 200) / STATE)
    save(tmp_path, 150, keep_last=1)
    assert find_checkpoint(tmp_path).name == "global_step150"
    save(tmp_path, 160, keep_last=1)
    assert find_checkpoint(tmp_path).name == "global_step160"
    assert [p.name for p in list_checkpoints(tmp_path)] == ["global_step200", "global_step160"]


def test_a_save_that_has_no_room_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(PipelineError, match="GB free, a checkpoint takes 1000000.00 GB: free some"):
        begin(tmp_path, "global_step2", 10**15)
    assert names(tmp_path) == ["global_step1", "latest"]


def test_a_write_that_fails_publishes_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    begin(tmp_path, "global_step2", 1)

    def write() -> list[FileRecord]:
        raise OSError(28, "No space left on device")

    saving = Saving(tmp_path, "global_step2", write)
    with pytest.raises(PipelineError, match="could not be written .*No space left"):
        saving.commit(CheckpointConfig())
    assert find_checkpoint(tmp_path).name == "global_step1"
    assert (tmp_path / "latest").read_text() == "global_step1"


def test_saving_a_step_again_replaces_it_whole(tmp_path: Path) -> None:
    save(tmp_path, 4, text="old")
    folder = save(tmp_path, 4, text="new")
    assert problem(folder) is None and (folder / STATE).read_text().startswith("new")
    assert names(tmp_path) == ["global_step4", "latest"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGE = {"truncated": truncate, "flipped": flip, "deleted": Path.unlink}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_found(tmp_path: Path, name: str, how: str) -> None:
    folder = save(tmp_path, 4)
    DAMAGE[how](folder / name)
    found = problem(folder)
    assert found is not None and name in found and str(folder) in found


def test_size_and_presence_are_checked_without_hashing(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    truncate(folder / FILES[0])
    assert "bytes" in (problem(folder, verify=False) or "")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_manifest_never_crashes_the_search(
    tmp_path: Path, data: st.DataObject, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another byte anywhere: the checkpoint is passed over, or what counts was not touched."""
    checkpoints = tmp_path / "checkpoints"
    if not checkpoints.exists():
        save(checkpoints, 1)
        save(checkpoints, 2)
        shutil.copy(checkpoints / "global_step2" / "manifest.json", tmp_path / "whole.json")
    raw = bytearray((tmp_path / "whole.json").read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    (checkpoints / "global_step2" / "manifest.json").write_bytes(raw)
    assert find_checkpoint(checkpoints).name in ("global_step2", "global_step1")


@pytest.mark.parametrize("content", ["{}", "[]", '{"files": 3}', '{"files": [{}]}', "", "{"])
def test_a_manifest_that_lists_nothing_is_damage(tmp_path: Path, content: str) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").write_text(content)
    assert find_checkpoint(tmp_path).name == "global_step1"


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "link"])
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("elsewhere")
    folder = save(tmp_path, 2)
    (folder / "link").symlink_to(tmp_path / "outside")
    manifest = json.loads((folder / "manifest.json").read_text())
    record = FileRecord.of(folder / name)
    manifest["files"].append(record.as_json() | {"path": name})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "leads out of the folder" in (problem(folder) or "")


def test_a_damaged_newest_is_passed_over_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    flip(tmp_path / "global_step3" / FILES[0])
    (tmp_path / "global_step2" / "manifest.json").unlink()
    assert find_checkpoint(tmp_path) == tmp_path / "global_step1"
    warnings = capsys.readouterr().err.splitlines()
    assert [line.startswith("warning: passed over a damaged") for line in warnings] == [True] * 2
    assert "global_step3: state/rank0.safetensors: xxh3 differs" in warnings[0]
    assert "global_step2 has no manifest.json" in warnings[1]


def test_when_all_are_damaged_the_data_refuses(tmp_path: Path) -> None:
    for step in (1, 2):
        truncate(save(tmp_path, step) / FILES[1])
    with pytest.raises(DataError, match="no checkpoint can be used: .*step2.*step1"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("make", [True, False])
def test_where_there_is_none_the_recipe_refuses(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "checkpoints"
    if make:
        begin(folder, "global_step2", 1)
    with pytest.raises(RecipeError, match="holds no checkpoint"):
        find_checkpoint(folder)


def test_a_named_checkpoint_is_taken_or_refused_but_never_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1)
    damaged = save(tmp_path, 2)
    truncate(damaged / FILES[0])
    assert find_checkpoint(tmp_path, "global_step1").name == "global_step1"
    with pytest.raises(DataError, match="checkpoint global_step2: "):
        find_checkpoint(tmp_path, "global_step2")
    with pytest.raises(DataError, match="does not exist"):
        find_checkpoint(tmp_path, "global_step3")
    with pytest.raises(RecipeError, match="expected global_stepN"):
        find_checkpoint(tmp_path, "../secrets")


def test_resume_means_what_it_says(tmp_path: Path) -> None:
    assert resolve_resume("auto", tmp_path) is None
    assert resolve_resume("never", tmp_path) is None
    with pytest.raises(RecipeError, match="holds no checkpoint"):
        resolve_resume("must", tmp_path)
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    assert resolve_resume("auto", tmp_path) == resolve_resume("must", tmp_path) == second
    with pytest.raises(RecipeError, match="run.resume=never, but"):
        resolve_resume("never", tmp_path)
    assert resolve_resume(str(first), tmp_path / "elsewhere") == first


def test_resume_from_a_damaged_path_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="the save never finished"):
        resolve_resume(str(folder), tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        resolve_resume(str(tmp_path / "global_step9"), tmp_path)
    with pytest.raises(DataError, match="no checkpoint can be used"):
        resolve_resume("auto", tmp_path)  # never silently afresh over a damaged run


def test_a_kill_between_the_two_renames_of_a_second_save_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 4, text="first")
    original = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "global_step4.tmp":
            raise OSError("killed here")
        return original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(OSError, match="killed here"):
            save(tmp_path, 4, keep_last=1, text="second")
    found = find_checkpoint(tmp_path)
    assert found.name == "global_step4.previous" and "first" in (found / FILES[0]).read_text()
    save(tmp_path, 4, keep_last=1, text="third")
    assert names(tmp_path) == ["global_step4", "latest"]
    assert "third" in (find_checkpoint(tmp_path) / FILES[0]).read_text()


def began_at(folder: Path, origin: Path | None) -> None:
    """Have a checkpoint say where its run has begun."""
    content = {"resumed_from": str(origin.resolve()) if origin else None}
    (folder / "trainer.json").write_text(json.dumps(content))
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [entry for entry in manifest["files"] if entry["path"] != "trainer.json"]
    record = FileRecord.of(folder / "trainer.json", folder).as_json()
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": [*files, record]}))


def test_a_run_that_has_begun_at_a_path_goes_on_with_its_own(tmp_path: Path) -> None:
    other, own = tmp_path / "other", tmp_path / "own"
    for step in (10, 20):
        save(other, step)
    origin = other / "global_step10"
    assert resolve_resume(str(origin), own) == origin
    save(own, 12)
    began_at(own / "global_step12", origin)
    assert resolve_resume(str(origin), own) == own / "global_step12"
    assert resolve_resume(str(other / "global_step20"), own) == other / "global_step20"


def test_going_back_in_a_run_puts_the_other_branch_aside(tmp_path: Path) -> None:
    own = tmp_path / "checkpoints"
    for step in (10, 20, 30):
        save(own, step)
        began_at(own / f"global_step{step}", None)
    origin = own / "global_step10"
    assert resolve_resume(str(origin), own) == origin
    assert len(list_checkpoints(own)) == 3  # to ask moves nothing
    aside = tmp_path / "superseded/checkpoints-1"
    assert branch_off(origin, own) == aside
    assert list_checkpoints(own) == [origin] and (own / "latest").read_text() == "global_step10"
    assert {path.name for path in aside.iterdir()} == {"global_step20", "global_step30"}
    save(own, 15)
    began_at(own / "global_step15", origin)
    assert branch_off(own / "global_step15", own) is None
    shutil.rmtree(origin)  # too old to be kept
    assert resolve_resume(str(origin), own) == own / "global_step15"  # the same command goes on
    assert resolve_resume("auto", own) == own / "global_step15"
