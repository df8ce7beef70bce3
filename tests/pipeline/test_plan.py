"""What a run will take, against what was measured elsewhere and what a real forward keeps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from data_prep.errors import RecipeError
from pipeline.models.build import build_backbone, parameter_count
from pipeline.plan import Machine, plan
from pipeline.plan.cost import cost_of
from pipeline.plan.memory import activations_of, memory_of, meta_module
from pipeline.recipe import load_recipe
from tests.pipeline.tiny import write_recipe

ROOT = Path(__file__).parents[2]


def paper(link: float) -> float:
    """The devices' worth of 128 in the largest run of Puri et al. 2018: 62,000 bytes/s each, a
    batch of 32,768 windows, gradients in fp16."""
    machine = Machine(devices=128, tokens_per_second=62_000, link_gigabytes=link)
    return 128 * cost_of(machine, 1, 32768 * 256, 1.0, 2 * 86.3e6, 0).efficiency


def test_the_efficiency_is_the_one_the_source_measured() -> None:
    assert paper(12.5) == pytest.approx(109, abs=1)  # 100 Gb/s of InfiniBand: what waiting is for
    assert paper(1.25) == pytest.approx(93, abs=2)  # 10 Gb/s of Ethernet: predicted


def test_one_device_exchanges_nothing_and_costs_what_it_says() -> None:
    machine = Machine(tokens_per_second=1000, price=3.0)
    found = cost_of(machine, steps=60, step_tokens=60_000, token_flops=1.0, gradient_bytes=1e9,
                    zero_stage=0)  # fmt: skip
    assert (found.exchanged_bytes, found.link_bytes, found.efficiency) == (0, 0, 1)
    assert found.hours == pytest.approx(1.0) and found.money == pytest.approx(3.0)


@pytest.mark.parametrize(("stage", "passes"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_traffic_is_a_ring_of_devices_within_and_of_nodes_between(stage: int, passes: int) -> None:
    found = cost_of(Machine(devices=32, node_devices=8), 1, 1, 1.0, 1e6, stage)
    assert found.exchanged_bytes == pytest.approx(passes * 1e6 * 31 / 32)
    assert found.link_bytes == pytest.approx(passes * 1e6 * 3 / 4)


@pytest.mark.parametrize(
    ("stage", "dtype", "bytes_of"),
    [(0, "fp32", (4, 4, 8)), (0, "bf16", (2, 2, 12)), (1, "bf16", (2, 2, 3)),
     (2, "bf16", (2, 0.5, 3)), (3, "bf16", (0.5, 0.5, 3)), (1, "fp32", (4, 4, 3))],
)  # fmt: skip
def test_zero_shards_what_it_should(
    tmp_path: Path, stage: int, dtype: str, bytes_of: tuple[float, ...]
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, "transformer", engine__zero_stage=stage))
    module = meta_module(recipe)
    found = memory_of(recipe, module, 4, dtype).device
    share = [
        found[name] / parameter_count(module) for name in ("weights", "gradients", "optimizer")
    ]
    assert tuple(share) == pytest.approx(bytes_of)


@pytest.mark.parametrize(
    ("stage", "template", "of_host"),
    [
        (2, "zero2_offload", {"optimizer", "gradients"}),
        (3, "zero3_offload", {"optimizer", "gradients", "weights"}),
        (3, "zero3_nvme", set()),
    ],
)
def test_what_is_offloaded_takes_no_memory_of_the_device(
    tmp_path: Path, stage: int, template: str, of_host: set[str]
) -> None:
    """As DeepSpeed's own estimate has it, which counts half as much again for buffers."""
    path = str(ROOT / f"ds_configs/{template}.json")
    keys = {"engine__zero_stage": stage, "engine__template": path}
    recipe = load_recipe(write_recipe(tmp_path, "transformer", **keys))
    module = meta_module(recipe)
    count = parameter_count(module)
    found = memory_of(recipe, module, 4, "bf16")
    assert set(found.host) == of_host and "optimizer" not in found.device
    assert set(found.disk) == (set() if of_host else {"optimizer", "gradients"})
    whole = 4 * (sum(found.host.values()) + sum(found.disk.values()))
    if stage == 2:
        theirs, device = estimate_zero2_model_states_mem_needs(count, 4, 1, True, 1.0)
        assert found.device["weights"] == device
    else:
        theirs, *_ = estimate_zero3_model_states_mem_needs(
            count, 0, 4, 1, True, bool(of_host), additional_buffer_factor=1.0
        )
    assert whole == pytest.approx(theirs)
    assert sum("on the host" in line for line in found.lines()) == len(of_host)


@pytest.mark.parametrize(("dtype", "bytes_of"), [("fp32", (8, 4, 8)), ("bf16", (12, 6, 8))])
def test_ddp_keeps_gradients_twice_and_sam_the_weights(
    tmp_path: Path, dtype: str, bytes_of: tuple[float, ...]
) -> None:
    path = write_recipe(tmp_path, "mlstm", engine__kind="ddp", optim__sam_rho=0.1)
    recipe = load_recipe(path)
    module = meta_module(recipe)
    found = memory_of(recipe, module, 4, dtype).device
    share = [found[name] / parameter_count(module) for name in ("optimizer", "buckets", "climb")]
    assert tuple(share) == pytest.approx(bytes_of)


CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 5, "n_head": 2, "n_embd": 32, "n_positions": 16, "resid_pdrop": 0.0,
             "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {"num_hidden_layers": 5, "hidden_size": 32, "intermediate_size": 48,
              "num_attention_heads": 2, "max_position_embeddings": 16},
}  # fmt: skip


@pytest.mark.parametrize("architecture", CONFIGS)
def test_activations_are_what_autograd_keeps(tmp_path: Path, architecture: str) -> None:
    model = {"kind": "transformer", "architecture": architecture, "config": CONFIGS[architecture]}
    recipe = load_recipe(write_recipe(tmp_path, "transformer", model=model))
    backbone = build_backbone(recipe.model, 300, 16, {})
    weights = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        return kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = backbone(torch.zeros(2, 16, dtype=torch.int64), None, None)
    real = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)
    del out
    assert activations_of(recipe, 4) == pytest.approx(real, rel=0.02)


def test_the_page_tells_all_of_it(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, "transformer"))
    page = plan(recipe, Machine(devices=4, node_devices=2, price=2.0))
    for word in ("M parameters, bf16, ZeRO 0", "4 devices x 2 micro-batch x 1 accumulation",
                 "activations", "together", "MB a step from each device", "efficiency", "hours",
                 "at 2 per device and hour"):  # fmt: skip
        assert word in page
    with pytest.raises(RecipeError, match="does not divide into 3 devices"):
        plan(recipe, Machine(devices=3))


def test_a_ramp_takes_less_time(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "transformer", run__steps=100)
    machine = Machine(tokens_per_second=1.0)
    steady, ramped = (
        re.search(r"time +([\d.]+) hours", plan(load_recipe(path, changes), machine))
        for changes in ([], ["batch.ramp=[[6400, 4]]"])  # half of the batch until the 100th step
    )
    assert steady and ramped
    assert float(ramped[1]) == pytest.approx(float(steady[1]) / 2, rel=0.02)


@pytest.mark.parametrize("name", ["amazon_mlstm_4096", "gpt2_small_mst"])
def test_large_recipes_are_planned_without_their_memory(name: str) -> None:
    page = plan(load_recipe(ROOT / f"recipes/{name}.yaml"), Machine(devices=8))
    assert "activations" in page and "FLOPs" in page
