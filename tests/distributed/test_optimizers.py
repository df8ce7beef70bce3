"""Other optimizers than AdamW through DeepSpeed: one run on one rank and on two, and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.test_ddp import DDP, trained
from tests.distributed.training import train_recipe
from tests.pipeline.tiny import losses, write_recipe
from tests.ranks import run_ranks

SGD = ["optim.name=sgd", "optim.options={momentum: 0.9}", "optim.lr=0.05"]
LONG = pytest.mark.long


@pytest.mark.parametrize(
    "optimizer",
    [["optim.name=muon"], ["optim.name=soap"], pytest.param(["optim.name=lamb"], marks=LONG),
     pytest.param(["optim.name=lars", "optim.lr=0.5"], marks=LONG),
     pytest.param(["optim.name=shampoo", "optim.lr=0.1"], marks=LONG)],
    ids=str,
)  # fmt: skip
def test_those_of_whole_matrices_train_and_resume_on_ddp(
    tmp_path: Path, optimizer: list[str]
) -> None:
    if optimizer != ["optim.name=muon"]:
        pytest.importorskip("pytorch_optimizer")
    changes = [*DDP, *optimizer]
    straight, resumed = trained(tmp_path, "mlstm", {"straight": changes}, changes)
    assert len(straight) == 6 and straight[-1] < straight[0]
    assert resumed == straight
    run_ranks(
        1, train_recipe, str(write_recipe(tmp_path, "mlstm")), ["run.name=one", *changes], None
    )
    assert straight == pytest.approx(losses(tmp_path / "runs/one"), abs=1e-3)


def test_eight_bits_train_and_resume(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    wide = ["model.hidden=64", *DDP]  # small tensors are not rounded
    small = [*wide, "optim.name=bnb_adamw8bit"]
    exact, straight, resumed = trained(tmp_path, "mlstm", {"exact": wide, "straight": small}, small)
    assert straight == pytest.approx(exact, abs=0.05) and straight != exact
    assert resumed == straight


@pytest.mark.long  # torchao compiles its step
@pytest.mark.parametrize("engine", ["engine.kind=ddp", "engine.zero_stage=0"])
@pytest.mark.parametrize("name", ["ao_adamw8bit", "bnb_adamw8bit"])
def test_eight_bits_resume_on_one_rank(tmp_path: Path, name: str, engine: str) -> None:
    pytest.importorskip({"ao": "torchao", "bnb": "bitsandbytes"}[name.split("_")[0]])
    recipe = str(write_recipe(tmp_path, "mlstm", model__hidden=64))
    fixed = [engine, f"optim.name={name}"]
    run_ranks(1, train_recipe, recipe, ["run.name=straight", *fixed], None)
    run_ranks(1, train_recipe, recipe, ["run.name=cut", *fixed], 3)
    run_ranks(1, train_recipe, recipe, ["run.name=cut", "run.resume=must", *fixed], None)
    assert losses(tmp_path / "runs/cut") == losses(tmp_path / "runs/straight")


@pytest.mark.parametrize(
    ("optimizer", "stage"),
    [(SGD, 2), pytest.param(SGD, 0, marks=LONG), pytest.param(SGD, 1, marks=LONG),
     pytest.param(SGD, 3, marks=LONG), pytest.param(["optim.name=adafactor"], 0, marks=LONG),
     pytest.param(["optim.name=nadam"], 1, marks=LONG)],
)  # fmt: skip
def test_two_ranks_are_one_and_a_resumed_run_is_whole(
    tmp_path: Path, optimizer: list[str], stage: int
) -> None:
    recipe = str(write_recipe(tmp_path, "mlstm", engine__zero_stage=stage))
    run_ranks(1, train_recipe, recipe, ["run.name=one", "engine.zero_stage=0", *optimizer], None)
    run_ranks(2, train_recipe, recipe, ["run.name=two", *optimizer], None)
    straight = losses(tmp_path / "runs/two")
    assert straight == pytest.approx(losses(tmp_path / "runs/one"), abs=5e-5)
    assert len(straight) == 6 and straight[-1] < straight[0]
    run_ranks(2, train_recipe, recipe, ["run.name=cut", *optimizer], 3)
    run_ranks(2, train_recipe, recipe, ["run.name=cut", "run.resume=must", *optimizer], None)
    assert losses(tmp_path / "runs/cut") == straight
