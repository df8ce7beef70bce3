"""On one GPU: DistributedDataParallel beside DeepSpeed, small states, and those of DeepSpeed's keys
that need one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.test_training import LAUNCHED, NO_DROPOUT, trained
from tests.pipeline.tiny import write_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module", autouse=True)
def alone() -> None:
    """This process as the only rank; its engines share one process group."""
    os.environ.update(LAUNCHED)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["mlstm", "transformer"])
def test_ddp_trains_as_deepspeed_does_and_resumes(tmp_path: Path, kind: str, dtype: str) -> None:
    dropout = NO_DROPOUT if kind == "transformer" else []
    changes = [f"precision.dtype={dtype}", *dropout]
    recipe = write_recipe(tmp_path, kind)
    tolerance = 1e-5 if dtype == "fp32" else 5e-3
    straight = trained(recipe, "straight", "engine.kind=ddp", *changes)
    assert straight == pytest.approx(trained(recipe, "deepspeed", *changes), rel=tolerance)
    trained(recipe, "cut", "engine.kind=ddp", *changes, stop_at=3)
    resumed = trained(recipe, "cut", "engine.kind=ddp", *changes, "run.resume=must")
    assert resumed == pytest.approx(straight, rel=tolerance)


@pytest.mark.parametrize(
    "changes",
    [["engine.comm_hook=fp16"], ["engine.comm_hook=bf16"], ["optim.sam_rho=0.05"],
     ["engine.comm_hook=powersgd", "engine.hook_after_steps=2"],
     ["engine.comm_hook=post_local_sgd", "engine.hook_after_steps=2"],
     ["optim.name=muon"]],
    ids=str,
)  # fmt: skip
def test_what_only_ddp_does(tmp_path: Path, changes: list[str]) -> None:
    recipe = write_recipe(tmp_path, "mlstm", engine__kind="ddp")
    found = trained(recipe, "run", *changes)
    assert len(found) == 6 and found[-1] < found[0]


@pytest.mark.parametrize("engine", ["engine.kind=ddp", "engine.zero_stage=0"])
@pytest.mark.parametrize("name", ["bnb_adamw8bit", "ao_adamw8bit"])
def test_small_states(tmp_path: Path, name: str, engine: str) -> None:
    pytest.importorskip({"bnb": "bitsandbytes", "ao": "torchao"}[name.split("_")[0]])
    recipe = write_recipe(tmp_path, "mlstm", model__hidden=64)
    straight = trained(recipe, "straight", engine, f"optim.name={name}")
    assert straight == pytest.approx(trained(recipe, "exact", engine), abs=0.05)


@pytest.mark.parametrize(
    ("stage", "zero"),
    [
        (2, {"offload_optimizer": {"device": "cpu", "pin_memory": True}}),
        (3, {"offload_optimizer": {"device": "cpu", "pin_memory": True},
             "offload_param": {"device": "cpu", "pin_memory": True}}),
        (3, {"zero_quantized_gradients": True}),
        (3, {"zero_hpz_partition_size": 1}), (2, {"overlap_comm": True}),
    ],
    ids=str,
)  # fmt: skip
def test_keys_of_a_template(tmp_path: Path, stage: int, zero: dict[str, Any]) -> None:
    template = {
        "zero_optimization": {"stage": "auto", **zero},
        "aio": {},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    path = tmp_path / "template.json"
    path.write_text(json.dumps(template))
    recipe = write_recipe(tmp_path, "transformer", engine__zero_stage=stage)
    changes = ["precision.dtype=bf16", *NO_DROPOUT]
    found = trained(recipe, "keys", f"engine.template={path}", *changes)
    assert found == pytest.approx(trained(recipe, "plain", *changes), abs=2e-2)
