"""Whole runs on one GPU: every precision and ZeRO stage, resumed, and beside a processor's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.training import train_recipe
from tests.pipeline.tiny import losses, metrics, write_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ROOT = Path(__file__).parents[2]
LAUNCHED = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511",
}  # fmt: skip
NO_DROPOUT = ["model.config.resid_pdrop=0", "model.config.embd_pdrop=0"]


@pytest.fixture(scope="module", autouse=True)
def alone() -> None:
    """This process as the only rank; its engines share one process group."""
    os.environ.update(LAUNCHED)


def trained(recipe: Path, name: str, *overrides: str, stop_at: int | None = None) -> list[float]:
    """Losses by step; a loss that was no number is left out of them."""
    train_recipe(0, str(recipe), [f"run.name={name}", *overrides], stop_at)
    return losses(recipe.parent / "runs" / name)


@pytest.mark.parametrize(
    ("kind", "dtype", "stage"),
    [("mlstm", "bf16", 0), ("mlstm", "fp16", 1), ("mlstm", "bf16", 3), ("mlstm", "fp32", 2),
     ("transformer", "fp16", 0), ("transformer", "bf16", 1), ("transformer", "bf16", 2),
     ("transformer", "fp16", 3)],
)  # fmt: skip
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, kind: str, dtype: str, stage: int
) -> None:
    """To rounding: sums over a batch are not made in one order on a GPU."""
    recipe = write_recipe(tmp_path, kind, engine__zero_stage=stage)
    precision = [f"precision.dtype={dtype}", "precision.initial_scale_power=8"]
    straight = trained(recipe, "straight", *precision)
    assert len(trained(recipe, "cut", *precision, stop_at=3)) == 3
    resumed = trained(recipe, "cut", *precision, "run.resume=must")
    assert len(straight) == 6
    assert resumed == pytest.approx(straight, rel=1e-5 if dtype == "fp32" else 5e-3)


def test_fp16_skips_steps_until_its_scale_fits(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "transformer")
    trained(recipe, "r", "precision.dtype=fp16", "precision.initial_scale_power=32",
            "precision.hysteresis=1", "run.steps=12")  # fmt: skip
    found = [line for line in metrics(tmp_path / "runs/r") if "train/loss_scale" in line]
    assert found[-1]["train/skipped_steps"] >= 3
    assert found[-1]["train/loss_scale"] <= 2**29
    assert found[-1]["step"] == 12


@pytest.mark.parametrize("kind", ["mlstm", "transformer"])
def test_a_run_on_a_gpu_is_the_processors_run(tmp_path: Path, kind: str) -> None:
    dropout = NO_DROPOUT if kind == "transformer" else []
    recipe = write_recipe(tmp_path, kind)
    ours = trained(recipe, "gpu", "precision.dtype=fp32", *dropout)
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHED}
    run = subprocess.run(
        [sys.executable, "run_pretrain.py", str(recipe), "run.name=cpu", *dropout],
        env=environment | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert ours == pytest.approx(losses(tmp_path / "runs/cpu"), rel=1e-4)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_compiled_layers_train_as_others_do(tmp_path: Path, stage: int) -> None:
    recipe = write_recipe(tmp_path, "transformer", engine__zero_stage=stage)
    plain = trained(recipe, "plain", *NO_DROPOUT)
    compiled = trained(recipe, "compiled", "engine.compile=true", *NO_DROPOUT)
    assert compiled == pytest.approx(plain, rel=5e-3)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_triton_blocks_train_as_masked_products_do(tmp_path: Path, dtype: str) -> None:
    """Through topology updates, sparse attention, and the return to dense."""
    phases = [{"name": "sparse", "until": 0.7, "density": 0.4, "attention": "sparse"},
              {"name": "restored", "until": 1.0, "density": 1.0}]  # fmt: skip
    recipe = write_recipe(
        tmp_path, "transformer", run__steps=12, precision__dtype=dtype,
        model__config={"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 32,
                       "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        sparsity={"kind": "mixed", "phases": phases, "update_every": 3, "block": 16,
                  "attention": {"pattern": "local_strided", "window": 4}},
    )  # fmt: skip
    blocks = trained(recipe, "blocks", "sparsity.executor=triton")
    masked = trained(recipe, "masked", "sparsity.executor=masked")
    assert len(blocks) == len(masked) >= 12
    # Topologies follow gradients: rounding may choose another block, so later losses may part.
    assert blocks[:6] == pytest.approx(masked[:6], rel=1e-4 if dtype == "fp32" else 2e-2)


@pytest.mark.parametrize("head", ["gram", "factored", "sampled", "adaptive", "liger", "cce"])
def test_every_head_trains_and_resumes(tmp_path: Path, head: str) -> None:
    factored = head == "factored"
    recipe = write_recipe(tmp_path, "transformer", engine__zero_stage=0 if factored else 2)
    choice = {
        "gram": "head={kind: gram, loss: taylor, learned_scale: true}",
        "factored": "head={kind: factored, loss: taylor, lr: 0.05}",
        "sampled": "head={kind: sampled, samples: 50}",
        "adaptive": "head={kind: adaptive, cutoffs: [50, 150]}",
    }.get(head, f"head={{kind: softmax, library: {head}}}")
    if package := {"liger": "liger_kernel", "cce": "cut_cross_entropy"}.get(head):
        pytest.importorskip(package)
    overrides = [choice, "precision.dtype=" + ("fp32" if factored else "bf16")]
    if factored:
        overrides.append("model.config.tie_word_embeddings=false")
    straight = trained(recipe, "straight", *overrides)
    trained(recipe, "cut", *overrides, stop_at=3)
    resumed = trained(recipe, "cut", *overrides, "run.resume=must")
    assert len(straight) == 6 and straight[-1] < straight[0]
    assert resumed == pytest.approx(straight, rel=5e-3)
