"""Each policy of the `watch` section end to end: a bad batch is planted, the run deals with it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.training import plant, plant_in_every_run
from tests.pipeline.tiny import losses, metrics, write_recipe
from tests.ranks import run_ranks

BAD = 72  # the first instance of the tenth global batch of eight
WINDOW = 6


def rank_train(
    rank: int, recipe: str, overrides: list[str], factor: float, where: str = "loss"
) -> Any:
    """Clock, the name of the error that ended the run, and its message."""
    from data_prep.errors import PipelineError
    from pipeline.recipe import load_recipe
    from pipeline.train import loop
    from pipeline.train.engine import init_distributed
    from pipeline.train.start import start_run

    init_distributed(2)
    run = start_run(load_recipe(recipe, overrides))
    plant(run, BAD, factor, where)
    error: PipelineError | None = None
    try:
        loop.train(run)
    except PipelineError as caught:
        error = caught
    run.loader.close()
    run.monitor.close()
    return run.clock.to_dict(), type(error).__name__, str(error), list(run.health.losses)


def recipe_in(folder: Path, **watch: Any) -> str:
    changes: dict[str, Any] = {f"watch__{key}": value for key, value in watch.items()}
    return str(
        write_recipe(
            folder, "transformer", run__steps=16, watch__spike_window_steps=WINDOW,
            watch__rollback_batches=2, checkpoint__every_steps=4, eval__every_steps=0, **changes,
        )
    )  # fmt: skip


def applied_at(run: Path) -> list[int]:
    """The first instance of every batch that was trained on."""
    lines = metrics(run)
    return [m["instances"] - 8 for m in lines if "train/loss" in m and m["result"] == "applied"]


EVERY = list(range(0, 200, 8))


@pytest.mark.parametrize("policy", [pytest.param("off", marks=pytest.mark.long), "warn", "skip"])
def test_a_spike_that_is_passed_over_in_the_run(tmp_path: Path, policy: str) -> None:
    recipe = recipe_in(tmp_path, spike=policy)
    clock, error, _, window = run_ranks(1, rank_train, recipe, [], 30.0)[0]
    assert error == "NoneType" and clock["applied"] == 16
    run = tmp_path / "runs/transformer"
    warned = [m for m in metrics(run) if "watch/spike_sigma" in m]
    assert [m["instances"] for m in warned] == ([] if policy == "off" else [BAD])
    trained = [first for first in EVERY if policy != "skip" or first != BAD]
    assert applied_at(run) == trained[:16]
    assert window == losses(run)[-WINDOW:]  # what became of the steps is what the window holds
    if policy == "skip":
        assert [m["result"] for m in metrics(run) if m["instances"] == BAD + 8] == ["skipped"]


def test_a_spike_rolls_all_ranks_back_to_the_checkpoint_and_past_the_window(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, spike="rollback")
    found = run_ranks(2, rank_train, recipe, [], 30.0)
    assert [error for _, error, _, _ in found] == ["RolledBack"] * 2
    assert "passes over 64 to 80" in found[0][2]  # two batches before, but not before instance 64
    run = tmp_path / "runs/transformer"
    (entry,) = json.loads((run / "skip_instances.json").read_text())
    assert (entry["first"], entry["end"], entry["step"]) == (64, 80, 9)
    evidence = json.loads((run / "logs/evidence-step9.json").read_text())
    assert evidence["instances"] == [72, 80] and len(evidence["losses_before"]) == WINDOW
    assert evidence["ranks"][1]["loss"] > 5 * evidence["ranks"][0]["loss"]
    assert not (run / "checkpoints/global_step9").exists()  # nothing is saved at that moment
    # The same command goes on; the bad batch is still there, and never seen.
    again = run_ranks(2, rank_train, recipe, [], 30.0)
    assert [(clock["applied"], error) for clock, error, _, _ in again] == [(16, "NoneType")] * 2
    assert applied_at(run) == [first for first in EVERY if first not in (64, 72)][:16]
    # The list is in the checkpoints too.
    trainer = json.loads((run / "checkpoints/global_step16/trainer.json").read_text())
    assert trainer["skip_instances"] == [[64, 80]]


def rank_pretrain(rank: int, recipe: str, factor: float) -> int:
    """The exit code of a whole command."""
    from data_prep.errors import run_main
    from pipeline.recipe import load_recipe
    from pipeline.train import start

    plant_in_every_run(BAD, factor)
    return run_main(lambda argv: start.pretrain(load_recipe(recipe)), [])


def test_exit_codes_and_states_and_an_end_to_rollbacks(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, spike="rollback", max_rollbacks=1)
    status = tmp_path / "runs/transformer/status.json"
    assert run_ranks(1, rank_pretrain, recipe, 30.0) == [75]
    assert json.loads(status.read_text())["state"] == "rolled back"
    # The spike comes back in a batch that is not passed over.
    (tmp_path / "runs/transformer/skip_instances.json").write_text(
        json.dumps([{"first": 0, "end": 0, "step": 0, "reason": ""}])
    )
    assert run_ranks(1, rank_pretrain, recipe, 30.0) == [4]
    found = json.loads(status.read_text())
    assert found["state"] == "diverged"
    assert "after 1 rollbacks (watch.max_rollbacks)" in found["reason"]


def test_a_spike_that_stops_the_run_leaves_evidence(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, spike="stop")
    _, error, message, _ = run_ranks(1, rank_train, recipe, [], 30.0)[0]
    assert error == "Diverged" and "evidence-step9.json" in message
    assert (tmp_path / "runs/transformer/logs/evidence-step9.json").is_file()


ERRORS = {"skip": "NoneType", "rollback": "RolledBack", "stop": "Diverged"}


@pytest.mark.parametrize(
    ("policy", "where"),
    [
        ("stop", "loss"), ("rollback", "gradient"),
        *(
            pytest.param(policy, where, marks=pytest.mark.long)
            for policy, where in [("skip", "loss"), ("skip", "gradient"), ("rollback", "loss"),
                                  ("stop", "gradient")]
        ),
    ],
)  # fmt: skip
def test_a_loss_or_gradient_that_is_no_number(tmp_path: Path, policy: str, where: str) -> None:
    recipe = recipe_in(tmp_path, nonfinite=policy)
    found = run_ranks(2, rank_train, recipe, [], math.nan, where)
    assert [each[1] for each in found] == [ERRORS[policy]] * 2
    run = tmp_path / "runs/transformer"
    assert all(math.isfinite(loss) for loss in losses(run))
    if policy == "skip":
        assert applied_at(run) == [first for first in EVERY if first != BAD][:16]
    else:
        evidence = json.loads((run / "logs/evidence-step9.json").read_text())
        assert evidence["instances"] == [72, 80]
        if where == "loss":
            assert "the loss is nan on rank 1" in evidence["reason"]
            assert evidence["ranks"][1]["loss"] == "nan" != evidence["ranks"][0]["loss"]


def test_the_window_survives_a_resume(tmp_path: Path) -> None:
    """Checkpoint at 8, spike at 9: without the losses of before there would be no verdict."""
    recipe = recipe_in(tmp_path, spike="stop")
    shape = "optim.decay_steps=16"
    ((_, error, _, _),) = run_ranks(1, rank_train, recipe, [shape, "run.steps=8"], 30.0)
    assert error == "NoneType"
    overrides = [shape, "run.resume=must"]
    ((clock, error, _, window),) = run_ranks(1, rank_train, recipe, overrides, 30.0)
    assert (error, clock["applied"]) == ("Diverged", 9)
    assert window == losses(tmp_path / "runs/transformer")[-WINDOW:]


def rank_overflow(rank: int, recipe: str, overrides: list[str]) -> tuple[str, str, int]:
    """Every gradient is too large for fp16, whatever the scale."""
    from deepspeed.accelerator import get_accelerator

    from data_prep.errors import Diverged
    from pipeline.recipe import load_recipe
    from pipeline.train import loop
    from pipeline.train.engine import init_distributed
    from pipeline.train.start import start_run

    # The loss-scaling logic, on a CPU that cannot do fp16 by itself.
    type(get_accelerator()).is_fp16_supported = lambda self: True  # type: ignore[method-assign]
    init_distributed(2)
    run = start_run(load_recipe(recipe, overrides))
    backward = run.engine.backward
    run.engine.backward = lambda loss, last: backward(loss * math.inf, last=last)
    try:
        loop.train(run)
    except Diverged as error:
        return type(error).__name__, str(error), run.clock.iteration
    finally:
        run.loader.close()
        run.monitor.close()
    return "", "", run.clock.iteration


@pytest.mark.parametrize(
    "stage", [0, 1, *(pytest.param(stage, marks=pytest.mark.long) for stage in (2, 3))]
)
def test_overflows_without_end_stop_the_run_by_one_rule_at_every_stage(
    tmp_path: Path, stage: int
) -> None:
    """Long after the loss scale has come to its minimum, where DeepSpeed would raise."""
    recipe = str(write_recipe(tmp_path, "transformer", engine__zero_stage=stage))
    overrides = ["optim.max_skipped_steps=9", "precision.dtype=fp16",
                 "precision.initial_scale_power=3", "precision.hysteresis=1"]  # fmt: skip
    ((error, message, tried),) = run_ranks(1, rank_overflow, recipe, overrides)
    assert error == "Diverged" and "9 steps in a row" in message
    assert tried == 8  # the ninth never ended


def rank_without_data(rank: int, recipe: str) -> str:
    from data_prep.errors import PipelineError
    from pipeline.recipe import load_recipe
    from pipeline.train.start import pretrain

    lost = ["data.folder=/nowhere"] if rank == 1 else []
    try:
        pretrain(load_recipe(recipe, lost))
    except PipelineError as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def test_a_host_without_the_data_ends_all_at_once(tmp_path: Path) -> None:
    """The others would wait for it until the process group gives up."""
    found = run_ranks(2, rank_without_data, recipe_in(tmp_path))
    assert len({*found}) == 1 and found[0].startswith("DataError: /nowhere holds no prepared data")
