"""Whole runs on DistributedDataParallel: beside DeepSpeed, resumed, exported, with every hook."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.training import train_recipe, train_recipes
from tests.pipeline.tiny import losses, write_recipe
from tests.ranks import run_ranks

LONG = pytest.mark.long
DDP = ["engine.kind=ddp"]
# Its blocks see other gradients than the masks of dropout would leave them with.
NO_DROPOUT = ["model.config.resid_pdrop=0", "model.config.embd_pdrop=0"]


def trained(
    folder: Path, kind: str, runs: dict[str, list[str]], resumed: list[str], ranks: int = 2
) -> list[list[float]]:
    """Losses of every run by its overrides, and of `resumed`, stopped after three steps."""
    recipe = str(write_recipe(folder, kind))
    fixed = NO_DROPOUT if kind == "transformer" else []
    todo: list[tuple[list[str], int | None]] = [
        ([f"run.name={name}", *fixed, *overrides], None) for name, overrides in runs.items()
    ]
    cut = ["run.name=cut", *fixed, *resumed]
    run_ranks(ranks, train_recipes, recipe, [*todo, (cut, 3), ([*cut, "run.resume=must"], None)])
    return [losses(folder / "runs" / name) for name in (*runs, "cut")]


@pytest.mark.parametrize("kind", ["mlstm", "transformer"])
def test_it_is_deepspeeds_run_and_resumes_on_any_number_of_ranks(tmp_path: Path, kind: str) -> None:
    runs = {"deepspeed": [], "straight": DDP}
    wanted, straight, resumed = trained(tmp_path, kind, runs, DDP)
    assert straight == pytest.approx(wanted, rel=1e-6)
    assert resumed == straight
    # Its files are whole: fewer ranks go on with them.
    half = tmp_path / "runs/cut/checkpoints"
    shutil.rmtree(half / "global_step6")
    fixed = NO_DROPOUT if kind == "transformer" else []
    changes = ["run.name=cut", "run.resume=must", *fixed, *DDP]
    run_ranks(1, train_recipe, str(write_recipe(tmp_path, kind)), changes)
    assert losses(tmp_path / "runs/cut") == pytest.approx(straight, rel=1e-5)


@pytest.mark.parametrize("kind", ["mlstm", pytest.param("transformer", marks=LONG)])
def test_bf16_with_fp32_masters_is_deepspeeds_too(tmp_path: Path, kind: str) -> None:
    bf16 = [*DDP, "precision.dtype=bf16"]
    runs = {"deepspeed": bf16[1:], "straight": bf16}
    wanted, straight, resumed = trained(tmp_path, kind, runs, bf16)
    assert straight == pytest.approx(wanted, abs=2e-2)
    assert resumed == straight


def test_a_checkpoint_is_exported(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from pipeline.export.hf import export_model
    from pipeline.recipe import load_recipe
    from pipeline.train.piece_files import SavedPieces

    path = write_recipe(tmp_path, "transformer", engine__kind="ddp")
    run_ranks(2, train_recipe, str(path), [])
    recipe = load_recipe(path)
    export_model(recipe)
    weights = AutoModelForCausalLM.from_pretrained(recipe.export_folder).state_dict()
    saved = SavedPieces.open(recipe.run_folder / "checkpoints/global_step6")
    name = "transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(weights[name], saved.whole(f"backbone.causal_lm.{name}"))


def test_deepspeed_goes_on_with_a_checkpoint_of_ddp_and_back(tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path, "mlstm", run__steps=8))
    deepspeed = ["engine.kind=deepspeed", "engine.zero_stage=1"]
    run_ranks(1, train_recipe, recipe, ["run.name=straight", *deepspeed])
    run_ranks(2, train_recipe, recipe, ["run.name=cut", *DDP], 3)
    run_ranks(1, train_recipe, recipe, ["run.name=cut", "run.resume=must", *deepspeed], 6)
    run_ranks(1, train_recipe, recipe, ["run.name=cut", "run.resume=must", *DDP])
    found, wanted = (losses(tmp_path / "runs" / name) for name in ("cut", "straight"))
    assert len(found) == 8 and found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("head", "overrides"),
    [("sampled", ["head={kind: sampled, samples: 50}"]),
     ("gram", ["head={kind: gram, loss: taylor, learned_scale: true}"]),
     pytest.param("adaptive", ["head={kind: adaptive, cutoffs: [50, 150]}"], marks=LONG),
     pytest.param("factored", ["head={kind: factored, loss: taylor, lr: 0.1}",
                               "model.config.tie_word_embeddings=false"], marks=LONG)],
)  # fmt: skip
def test_heads_train_and_resume(tmp_path: Path, head: str, overrides: list[str]) -> None:
    ddp = [*DDP, *overrides]
    runs = {"deepspeed": overrides, "straight": ddp}
    wanted, straight, resumed = trained(tmp_path, "transformer", runs, ddp)
    assert resumed == straight
    assert straight == pytest.approx(wanted, abs=5e-5)


# Hooks -------------------------------------------------------------------------------------------

# What the exchange may change of a loss over six steps.
HOOKS = {"fp16": 2e-3, "bf16": 2e-2, "powersgd": 0.2, "post_local_sgd": 0.1}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_stays_close_and_resumes_to_the_last_bit(tmp_path: Path, hook: str) -> None:
    begins = ["engine.hook_after_steps=2", "engine.local_steps=2"]
    hooked = [*DDP, f"engine.comm_hook={hook}", *begins]
    whole, straight, resumed = trained(
        tmp_path, "mlstm", {"whole": DDP, "straight": hooked}, hooked
    )
    assert straight == pytest.approx(whole, abs=HOOKS[hook])
    assert straight != whole and straight[-1] < straight[0]
    assert resumed == straight
    if hook in ("powersgd", "post_local_sgd"):
        assert straight[:3] == whole[:3]  # it had not begun


def rank_hooked(rank: int, hook: str, rest: dict[str, Any]) -> Any:
    """The first update of two, whole and hooked, and whether ranks ended with the same weights."""
    import torch.distributed as dist

    from pipeline.recipe.engine import EngineConfig
    from pipeline.train.ddp_engine import DDPEngine
    from pipeline.train.engine import init_distributed

    init_distributed(2)
    found = []
    for section in (EngineConfig(kind="ddp"), EngineConfig(kind="ddp", comm_hook=hook, **rest)):
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 4))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        engine = DDPEngine(module, optimizer, section, "fp32", 0.0)
        engine.set_lr(0.1)
        for step in range(4):
            x = torch.randn(8, 24, generator=torch.Generator().manual_seed(10 * step + rank))
            engine.backward(engine.forward(x).square().sum() / 16, last=True)
            if step == 3:
                found.append(engine.get_gradient(module[0].weight).clone())
            engine.step()
        weight = engine.get_parameter(module[0].weight)
        both = [torch.empty_like(weight) for _ in range(2)]
        dist.all_gather(both, weight)
        found.append(torch.equal(*both))
    return found


@pytest.mark.parametrize(
    ("hook", "rest", "share", "equal"),
    [("fp16", {}, 1e-3, True), ("bf16", {}, 1e-2, True),
     ("powersgd", {"hook_after_steps": 2, "powersgd_rank": 2}, 0.8, True),
     ("post_local_sgd", {"hook_after_steps": 2, "local_steps": 3}, 1.5, False),
     ("post_local_sgd", {"hook_after_steps": 3, "local_steps": 3}, 1.5, True)],
)  # fmt: skip
def test_a_hooked_gradient_is_near_the_whole_one_but_not_it(
    hook: str, rest: dict[str, Any], share: float, equal: bool
) -> None:
    for whole, whole_equal, hooked, hooked_equal in run_ranks(2, rank_hooked, hook, rest):
        assert 0 < float((hooked - whole).norm()) < share * float(whole.norm())
        assert whole_equal and hooked_equal == equal


class Rare(nn.Module):
    """A branch that only rows above a limit go through, and one that nothing does."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.rare, self.never = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.always(x)
        return self.rare(out) if float(x.max()) > 5 else out


def rank_rare(rank: int) -> Any:
    from pipeline.recipe.engine import EngineConfig
    from pipeline.train.ddp_engine import DDPEngine
    from pipeline.train.engine import init_distributed

    init_distributed(2)
    torch.manual_seed(1)
    module = Rare()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    engine = DDPEngine(module, optimizer, EngineConfig(kind="ddp"), "fp32", 0.0)
    x = torch.arange(12.0).view(2, 2, 3) / 2  # by micro-batch and rank: 2.5 and below, 5.5
    for index, micro in enumerate(x.flip(0)):  # the one above the limit comes first
        with nullcontext() if index else engine.no_sync():
            engine.backward(engine.forward(micro[rank]).square().sum(), last=index == 1)
    return [engine.get_gradient(parameter) for parameter in module.parameters()]


def test_what_one_micro_batch_of_one_rank_uses_alone_is_exchanged() -> None:
    torch.manual_seed(1)
    module = Rare()
    x = torch.arange(12.0).view(2, 2, 3) / 2
    sum(module(row).square().sum() for row in x.flatten(0, 1)).backward()
    for found in run_ranks(2, rank_rare):
        for mine, parameter in zip(found, module.parameters(), strict=True):
            theirs = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(mine, theirs)


class Remembering(torch.optim.SGD):
    """Keeps an object that only its own code could read back."""

    def step(self, closure: Any = None) -> None:
        super().step()
        self.state[self.param_groups[0]["params"][0]]["object"] = object()


def rank_remembering(rank: int) -> str:
    from data_prep.errors import RecipeError
    from pipeline.recipe.engine import EngineConfig
    from pipeline.train.ddp_engine import DDPEngine
    from pipeline.train.engine import init_distributed

    init_distributed(2)
    module = nn.Linear(2, 2)
    optimizer = Remembering(module.parameters(), lr=0.1)
    engine = DDPEngine(module, optimizer, EngineConfig(kind="ddp"), "fp32", 0.0)
    engine.backward(engine.forward(torch.ones(1, 2)).sum(), last=True)
    with pytest.raises(RecipeError) as caught:
        engine.step()
    return str(caught.value)


def test_an_optimizer_that_could_not_be_saved_is_refused_in_its_first_step() -> None:
    (found,) = run_ranks(1, rank_remembering)
    assert "Remembering keeps more than tensors and numbers in object" in found


class Rotary(nn.Module):
    """A layer with a table of positions beside its weights."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("table", 1 / torch.arange(1, 4).float(), persistent=False)


def rank_rounded(rank: int) -> tuple[torch.dtype, torch.dtype]:
    from pipeline.recipe.engine import EngineConfig
    from pipeline.train.ddp_engine import DDPEngine
    from pipeline.train.engine import init_distributed

    init_distributed(2)
    module = Rotary()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    DDPEngine(module, optimizer, EngineConfig(kind="ddp"), "bf16", 0.0)
    return module.weight.dtype, module.table.dtype


def test_bf16_rounds_weights_and_no_tables() -> None:
    """Rotary angles of bf16 would be those of other positions, which no export has."""
    assert run_ranks(1, rank_rounded) == [(torch.bfloat16, torch.float32)]
