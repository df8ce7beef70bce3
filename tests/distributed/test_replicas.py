"""What ranks find out about each other: replicas that drift apart, and a rank that is slow."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.train.replicas import bit_sums
from tests.pipeline.tiny import write_recipe
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def rank_with_a_flipped_bit(rank: int, recipe: str, dtype: str) -> tuple[str, str, int]:
    """Train with one bit of one weight of rank 1 flipped after the second step."""
    from data_prep.errors import Diverged
    from pipeline.recipe import load_recipe
    from pipeline.train import loop
    from pipeline.train.engine import init_distributed
    from pipeline.train.start import start_run

    init_distributed(2)
    run = start_run(load_recipe(recipe, [f"precision.dtype={dtype}"]))
    step = run.engine.step

    def flipping() -> Any:
        result = step()
        if rank == 1 and run.clock.applied == 1:
            named = dict(run.engine.named_parameters())
            bits = named["backbone.causal_lm.transformer.ln_f.bias"].data
            bits.view(torch.int32 if dtype == "fp32" else torch.int16)[3] ^= 1
        return result

    run.engine.step = flipping  # type: ignore[method-assign]
    try:
        loop.train(run)
    except Diverged as error:
        return "Diverged", str(error), run.clock.applied
    finally:
        run.loader.close()
        run.monitor.close()
    return "", "", run.clock.applied


@pytest.mark.parametrize(
    ("stage", "dtype"), [(0, "fp32"), pytest.param(2, "bf16", marks=pytest.mark.long)]
)
def test_one_flipped_bit_is_found_and_its_tensor_named(
    tmp_path: Path, stage: int, dtype: str
) -> None:
    recipe = write_recipe(
        tmp_path, "transformer", engine__zero_stage=stage, watch__replicas_every_steps=2
    )
    found = run_ranks(2, rank_with_a_flipped_bit, str(recipe), dtype)
    for error, message, applied in found:
        assert (error, applied) == ("Diverged", 2)
        assert "hold different bits of" in message and "rank 1" in message
    # At stage 0 the flipped weight itself; later the step may have spread it.
    evidence = json.loads((tmp_path / "runs/transformer/logs/evidence-step2.json").read_text())
    assert evidence["tensor"] == "backbone.causal_lm.transformer.ln_f.bias"


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64]
)
def test_any_changed_element_changes_the_sum(dtype: torch.dtype) -> None:
    tensor = torch.arange(24).reshape(4, 6).to(dtype)
    before = bit_sums([tensor, tensor.t()], CPU)
    assert before[0] == before[1]  # of any layout
    for place in ((0, 0), (3, 5)):
        changed = tensor.clone()
        changed[place] += 1
        assert bit_sums([changed], CPU) != before[:1]


def rank_slow(rank: int, recipe: str, sleepers: list[int]) -> list[str]:
    from pipeline.recipe import load_recipe
    from pipeline.train import loop
    from pipeline.train.engine import init_distributed
    from pipeline.train.start import start_run

    init_distributed(2)
    run = start_run(load_recipe(recipe))
    said: list[str] = []
    run.monitor.say = said.append  # type: ignore[method-assign]
    forward = run.engine.forward

    def slow(*inputs: Any) -> Any:
        if rank in sleepers:
            time.sleep(0.5)
        return forward(*inputs)

    run.engine.forward = slow  # type: ignore[method-assign]
    loop.train(run)
    run.loader.close()
    run.monitor.close()
    return [line for line in said if "as long as the other ranks" in line]


@pytest.mark.parametrize(
    ("sleepers", "named"), [([1], True), pytest.param([0, 1], False, marks=pytest.mark.long)]
)
def test_a_sleeping_rank_is_named_unless_all_sleep(
    tmp_path: Path, sleepers: list[int], named: bool
) -> None:
    recipe = str(write_recipe(tmp_path, "transformer", run__log_every_steps=2, eval__every_steps=0))
    said = run_ranks(2, rank_slow, recipe, sleepers)[0]
    assert bool(said) == named, said
    assert all(line.startswith("warning: rank 1 (") for line in said)
