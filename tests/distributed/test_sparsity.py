"""Mixed sparsity under ZeRO: masked weights stay 0 in every copy, ranks agree, resume is exact."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.training import train
from tests.pipeline.tiny import losses, metrics, write_recipe
from tests.ranks import run_ranks

PHASES = [
    {"name": "warm-up", "until": 0.25, "density": 0.6},
    {"name": "ultra-sparse", "until": 0.7, "density": 0.2, "attention": "sparse"},
    {"name": "restored", "until": 1.0, "density": 1.0},
]
MODEL = {
    "kind": "transformer",
    "config": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "resid_pdrop": 0.0,
               "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}  # fmt: skip


def sparse_recipe(folder: Path, steps: int = 12, model: Any = MODEL, **changes: Any) -> str:
    sparsity = {
        "kind": "mixed", "phases": PHASES, "update_every": 3, "executor": "masked",
        "attention": {"pattern": "local_strided", "window": 4}, **changes.pop("sparsity", {}),
    }  # fmt: skip
    kind = model["kind"]
    return str(
        write_recipe(folder, kind, model=model, sparsity=sparsity, run__steps=steps, **changes)
    )


def rank_train(rank: int, recipe: str, overrides: list[str], stop_at: int | None) -> Any:
    """Train, looking at every copy of the weights after every step."""
    from pipeline.clock import StepResult
    from pipeline.recipe import load_recipe
    from pipeline.train.engine import init_distributed
    from pipeline.train.start import start_run

    init_distributed(2)
    run = start_run(load_recipe(recipe, overrides))
    (plugin,) = run.plugins
    seen = []

    def look(engine: Any, clock: Any, result: StepResult) -> None:
        type(plugin).after_step(plugin, engine, clock, result)
        density = plugin.metrics(clock)["sparsity/density"]
        seen.append((clock.iteration, clock.applied, result.value, round(density, 3)))
        for matrix in plugin.matrices:
            off = ~matrix.full_mask(torch.device("cpu"))
            for copy in (
                engine.get_parameter(matrix.parameter),
                engine.get_moment(matrix.parameter, "exp_avg"),
                engine.get_moment(matrix.parameter, "exp_avg_sq"),
            ):
                assert copy is None or not copy[off].any()

    plugin.after_step = look  # type: ignore[method-assign]
    train(run, None if stop_at is None else lambda: run.clock.iteration >= stop_at - 1)
    weights = {m.name: run.engine.get_parameter(m.parameter) for m in plugin.matrices}
    return seen, weights, plugin.plugin_state()


DDP = -1  # in the place of a stage: the other engine
CASES = [
    # stage, dtype, block, changes; pairs of what could interact
    pytest.param(DDP, "bf16", 1, {}, marks=pytest.mark.long),
    pytest.param(0, "fp32", 1, {}, marks=pytest.mark.long),
    (1, "fp32", 8, {"executor": "blocks"}),
    pytest.param(2, "bf16", 1, {"skip_optimizer_step": False}, marks=pytest.mark.long),
    (3, "fp32", 1, {"grown_moments": "gradient", "mask_head": True}),
    pytest.param(3, "bf16", 8, {"executor": "gather"}, marks=pytest.mark.long),
    pytest.param(0, "bf16", 8, {"densities": "uniform"}, marks=pytest.mark.long),
    pytest.param(1, "bf16", 1, {"mask_head": True}, marks=pytest.mark.long),
    pytest.param(
        2, "fp32", 8, {"executor": "gather", "skip_optimizer_step": False}, marks=pytest.mark.long
    ),
]


@pytest.mark.parametrize(("stage", "dtype", "block", "changes"), CASES)
def test_masks_hold_and_resume_is_exact(
    tmp_path: Path, stage: int, dtype: str, block: int, changes: dict[str, Any]
) -> None:
    engine = {"kind": "ddp"} if stage == DDP else {"zero_stage": stage}
    recipe = sparse_recipe(
        tmp_path, sparsity={"block": block, **changes}, engine=engine, precision__dtype=dtype
    )
    straight = run_ranks(2, rank_train, recipe, ["run.name=straight"], None)
    run_ranks(2, rank_train, recipe, ["run.name=cut"], 8)
    cut = run_ranks(2, rank_train, recipe, ["run.name=cut", "run.resume=must"], None)
    assert losses(tmp_path / "runs/cut") == losses(tmp_path / "runs/straight")
    assert straight[0][0][8:] == cut[0][0]
    for (_, weights, state), (_, weights2, state2) in itertools.product(straight, cut):
        assert all(torch.equal(weights[name], weights2[name]) for name in weights)
        assert state.keys() == state2.keys()
        assert all(torch.equal(state[name], state2[name]) for name in state)
    densities = [density for *_, density in straight[0][0]]
    assert densities[0] == pytest.approx(0.6, abs=0.02)
    assert min(densities) == pytest.approx(0.2, abs=0.02) and densities[-1] == 1.0
    topology = [result for _, _, result, _ in straight[0][0]].count("topology")
    assert topology == (0 if changes.get("skip_optimizer_step") is False else 4)


def rank_plain(rank: int, path: str) -> list[float]:  # noqa: C901, one loop to read at once
    """The same training written out: masks multiplied in, AdamW, no engine. Losses by iteration."""
    from data_prep.shards import Prepared
    from pipeline.data.loader import Loader
    from pipeline.data.order import ShuffledOrder
    from pipeline.optim.build import build_optimizer
    from pipeline.optim.schedule import learning_rate
    from pipeline.recipe import load_recipe
    from pipeline.seeds import generator_for
    from pipeline.sparsity.plan import build_plan
    from pipeline.sparsity.topology import evolve, random_mask
    from pipeline.train.module import build_module

    recipe = load_recipe(path)
    prepared, batch, steps = Prepared.open(recipe.data.folder), recipe.batch, recipe.run.steps
    module = build_module(recipe, prepared)
    optimizer = build_optimizer(recipe.optim, module)
    split = prepared.split("train")
    order = ShuffledOrder(split.tokens, batch.window_tokens, recipe.run.seed)
    loader = Loader(split, order, batch.micro_batch, 0, 1)
    plan, every = build_plan(recipe.sparsity), recipe.sparsity.update_every
    prefix = "backbone.causal_lm."
    weights = {
        name.removeprefix(prefix).removesuffix(".weight"): parameter
        for name, parameter in module.named_parameters()
        if any(part in name for part in ("c_attn.w", "c_proj.w", "c_fc.w"))
    }

    def active(phase: int, name: str) -> int:
        return round(plan.phases[phase].density * weights[name].numel())

    masks = {
        name: random_mask(tuple(w.shape), active(0, name), generator_for(recipe.run.seed, 0, name))
        for name, w in weights.items()
    }
    losses, applied, last_update, at_phase = [], 0, 0, 0
    for iteration in itertools.count():
        if applied == steps:
            break
        phase, _ = plan.lookup(applied, steps)
        moves = phase < 2 and iteration // every != last_update // every
        update = moves or phase != at_phase
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(masks[name])
        total = 0.0
        found = loader.at(iteration * batch.global_batch, batch.global_batch)
        for micro in found:
            loss_sum, _, _ = module(micro.inputs, micro.targets, micro.weights)
            (loss_sum / found.global_tokens).backward()
            total += float(loss_sum.detach())
        losses.append(total / found.global_tokens)
        gradients = {name: weight.grad for name, weight in weights.items()}
        if update:
            at_phase, last_update = phase, iteration
            for name, weight in weights.items():
                before = masks[name]
                masks[name] = evolve(
                    before, weight.detach().abs(), gradients[name].abs(), active(phase, name),
                    plan.drop_fraction(applied, steps), plan.gradient_share,
                    generator_for(recipe.run.seed, iteration, name),
                )  # fmt: skip
                for key in ("exp_avg", "exp_avg_sq"):
                    optimizer.state[weight][key][before ^ masks[name]] = 0.0
                if recipe.sparsity.grown_moments == "gradient":
                    grown = masks[name] & ~before
                    optimizer.state[weight]["exp_avg_sq"][grown] = gradients[name][grown] ** 2
        else:
            for name, weight in weights.items():
                weight.grad *= masks[name]
            torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.optim.gradient_clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe.optim, batch, applied, steps)
            optimizer.step()
            applied += 1
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("moments", ["zero", "gradient"])
def test_training_is_that_of_the_method_written_out(tmp_path: Path, moments: str) -> None:
    changes = {"densities": "uniform", "attention": None, "grown_moments": moments}
    recipe = sparse_recipe(tmp_path, sparsity=changes)
    run_ranks(1, rank_train, recipe, [], None)
    (expected,) = run_ranks(1, rank_plain, recipe)
    found = losses(tmp_path / "runs/transformer")
    assert len(found) == len(expected) == 16
    assert found == pytest.approx(expected, abs=2e-5)


@pytest.mark.long
def test_the_counted_flops_meet_the_share_that_was_asked_for(tmp_path: Path) -> None:
    recipe = sparse_recipe(
        tmp_path, steps=300, optim__lr=1e-3, optim__warmup_steps=10,
        sparsity={"plan": "mst", "phases": None, "flops": 0.6, "update_every": 20, "block": 8,
                  "executor": "gather"},
        eval__every_steps=300, run__log_every_steps=50,
    )  # fmt: skip
    run_ranks(1, rank_train, recipe, [], None)
    last = [line for line in metrics(tmp_path / "runs/transformer") if "train/loss" in line][-1]
    assert last["flops/counted"] / last["flops/dense"] == pytest.approx(0.6, abs=0.005)
    parts = sum(last[f"flops/{part}"] for part in ("blocks", "attention", "head"))
    assert parts == pytest.approx(last["flops/counted"])
    assert last["sparsity/density"] == 1.0


MLSTM = {"kind": "mlstm", "hidden": 24, "embedding": 8, "layers": 2}


@pytest.mark.long
@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.long), 3])
def test_recurrent_matrices_of_an_mlstm(tmp_path: Path, stage: int) -> None:
    recipe = sparse_recipe(
        tmp_path, model=MLSTM, tokenizer={"kind": "bytes"}, engine__zero_stage=stage,
        sparsity={"modules": ["mlstm.*.w_h", "mlstm.*.w_mh"], "attention": None},
    )  # fmt: skip
    straight = run_ranks(2, rank_train, recipe, ["run.name=straight"], None)
    run_ranks(2, rank_train, recipe, ["run.name=cut"], 8)
    cut = run_ranks(2, rank_train, recipe, ["run.name=cut", "run.resume=must"], None)
    assert losses(tmp_path / "runs/cut") == losses(tmp_path / "runs/straight")
    assert len(straight[0][1]) == 4 and straight[0][0][8:] == cut[0][0]


def rank_leaky(rank: int, recipe: str) -> str:
    """A run whose optimizer moves every weight: what it is told."""
    from data_prep.errors import RecipeError
    from pipeline.recipe import load_recipe
    from pipeline.train import loop
    from pipeline.train.engine import init_distributed
    from pipeline.train.start import start_run

    init_distributed(2)
    run = start_run(load_recipe(recipe))
    step = run.engine.step
    parameter = run.plugins[0].matrices[1].parameter  # type: ignore[attr-defined]

    def moving() -> Any:
        result = step()
        run.engine.set_parameter(parameter, run.engine.get_parameter(parameter) + 1e-4)
        return result

    run.engine.step = moving  # type: ignore[method-assign]
    try:
        loop.train(run)
    except RecipeError as error:
        return str(error)
    finally:
        run.loader.close()
        run.close()
    return ""


@pytest.mark.parametrize("stage", [0, 3])
def test_an_optimizer_that_moves_masked_weights_is_refused(tmp_path: Path, stage: int) -> None:
    for message in run_ranks(2, rank_leaky, sparse_recipe(tmp_path, engine__zero_stage=stage)):
        assert "masked weights of transformer.h.0.attn.c_proj were not 0 in the forward" in message


def rank_refused(rank: int, recipe: str, overrides: list[str]) -> str:
    from data_prep.errors import PipelineError
    from pipeline.recipe import load_recipe
    from pipeline.train.engine import init_distributed
    from pipeline.train.start import start_run

    init_distributed(2)
    with pytest.raises(PipelineError) as caught:
        start_run(load_recipe(recipe, overrides))
    return str(caught.value)


def test_masks_and_dense_checkpoints_do_not_mix(tmp_path: Path) -> None:
    recipe = sparse_recipe(tmp_path)
    run_ranks(1, rank_train, recipe, ["run.name=sparse"], 3)
    (found,) = run_ranks(1, rank_refused, recipe, ["run.name=sparse", "sparsity={kind: dense}"])
    assert "sparsity.kind: mixed in the checkpoint, dense now" in found
    (found,) = run_ranks(1, rank_refused, recipe, ["run.name=sparse", "sparsity.update_every=4"])
    assert "sparsity.update_every: 3 in the checkpoint, 4 now" in found
    folder = next((tmp_path / "runs/sparse/checkpoints").glob("global_step*"))
    (folder / "plugins/sparsity.safetensors").unlink()
    (found,) = run_ranks(1, rank_refused, recipe, ["run.name=sparse"])
    assert "plugins/sparsity.safetensors is missing" in found
