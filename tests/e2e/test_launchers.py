"""The same run under every launcher, and how it leaves when it is asked to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, command, environment, python
from tests.pipeline.tiny import losses, write_recipe

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
DEEPSPEED = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2"]


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.long), 3])
def test_deepspeed_and_torchrun_give_the_losses_of_plain_python(tmp_path: Path, stage: int) -> None:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    recipe = write_recipe(tmp_path, "transformer", model__config=sizes | no_dropout)
    one = python("run_pretrain.py", recipe, "run.name=one")
    assert one.returncode == 0, one.stderr
    launcher = DEEPSPEED if stage == 0 else TORCHRUN
    two = command(
        *launcher, "run_pretrain.py", recipe, "run.name=two", f"engine.zero_stage={stage}"
    )
    assert two.returncode == 0, two.stdout + two.stderr
    runs = tmp_path / "runs"
    assert losses(runs / "two") == pytest.approx(losses(runs / "one"), abs=1e-4)
    assert len(losses(runs / "two")) == 6
    assert json.loads((runs / "two/status.json").read_text())["world_size"] == 2


def start_long_run(tmp_path: Path, *overrides: str) -> tuple[subprocess.Popen[str], Path, Path]:
    recipe = write_recipe(tmp_path, "mlstm", run__steps=100_000)
    run = tmp_path / "runs/mlstm"
    process = subprocess.Popen(
        [sys.executable, "run_pretrain.py", str(recipe), *overrides], cwd=ROOT, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").is_file() and losses(run)):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()  # type: ignore[union-attr]
        time.sleep(0.2)
    return process, recipe, run


@pytest.mark.parametrize(
    ("how", "code", "state"),
    [
        (signal.SIGTERM, 75, "stopped"),
        pytest.param(signal.SIGINT, 130, "stopped", marks=pytest.mark.long),
        pytest.param("STOP", 75, "stopped", marks=pytest.mark.long),
    ],
)
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(
    tmp_path: Path, how: signal.Signals | str, code: int, state: str
) -> None:
    process, recipe, run = start_long_run(tmp_path)
    if isinstance(how, str):
        (run / how).touch()
    else:
        process.send_signal(how)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert "Traceback" not in output
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == state and not (run / "STOP").exists()
    step = status["step"]
    assert (run / f"checkpoints/global_step{step}/manifest.json").is_file()
    more = python("run_pretrain.py", recipe, "run.resume=must", "run.stop_after_minutes=0.0001")
    assert more.returncode == 75, more.stderr
    assert f"resumed from {run}/checkpoints/global_step{step}" in more.stdout


def test_dry_run_and_print_config_touch_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "transformer")
    dry = python("run_pretrain.py", recipe, "--dry-run")
    assert dry.returncode == 0 and "M parameters" in dry.stdout, dry.stderr
    shown = python("run_pretrain.py", recipe, "--print-config", "optim.lr=0.5")
    assert shown.returncode == 0 and "lr: 0.5" in shown.stdout
    assert not (tmp_path / "runs").exists()


def test_preflight_ticks_every_check(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "mlstm")
    result = python("-m", "pipeline", "preflight", recipe)
    assert result.returncode == 0 and result.stdout.count("✓") == 13, result.stdout + result.stderr


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_demo_gives_the_same_hundred_losses_on_two_ranks(tmp_path: Path, stage: int) -> None:
    from data_prep.prepare import prepare

    recipe = ROOT / "recipes/demo_transformer.yaml"
    where = f"data.folder={tmp_path / 'prepared'}"
    prepare(recipe, [where])
    common = [
        where, f"run.folder={tmp_path}", "run.steps=100", "optim.decay_steps=260",
        "run.log_every_steps=1", f"engine.zero_stage={stage}",
    ]  # fmt: skip
    assert python("run_pretrain.py", recipe, *common, "run.name=one").returncode == 0
    two = command(*DEEPSPEED, "run_pretrain.py", recipe, *common, "run.name=two", limit_s=900)
    assert two.returncode == 0, two.stdout + two.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert len(losses(tmp_path / "two")) == 100
