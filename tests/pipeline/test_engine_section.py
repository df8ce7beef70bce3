"""Which engine bears what: one clear error each, before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.errors import RecipeError
from pipeline.preflight import dry_run
from pipeline.recipe import load_recipe
from tests.pipeline.tiny import write_recipe

MIXED = "sparsity={kind: mixed, phases: [{name: only, until: 1.0, density: 0.5}]}"


@pytest.mark.parametrize(
    ("kind", "overrides", "words"),
    [
        ("mlstm", ["engine.comm_hook=bf16"], "called by DistributedDataParallel, and DeepSpeed"),
        ("mlstm", ["engine.kind=ddp", "engine.zero_stage=1"], "keeps the whole model on every"),
        ("mlstm", ["engine.kind=ddp", "engine.template=x.json"], "read by DeepSpeed only"),
        ("mlstm", ["engine.kind=ddp", "precision.dtype=fp16"], "use precision.dtype=bf16"),
        ("mlstm", ["engine.kind=dpd"], "engine.kind"),
        ("mlstm", ["optim.sam_rho=0.1"], "copies and parts of them .* set engine.kind=ddp"),
        ("transformer", ["engine.kind=ddp", "optim.sam_rho=0.1", "head={kind: gram}"],
         "head.kind=gram: it does not bear a second pass .* head.kind=softmax"),
        ("transformer", ["engine.kind=ddp", "optim.sam_rho=0.1", MIXED], "sparsity.kind=mixed"),
        ("mlstm", ["engine.kind=ddp", "optim.sam_rho=0.1", "engine.comm_hook=powersgd"],
         "engine.comm_hook=powersgd: .* engine.comm_hook=none"),
        ("mlstm", ["engine.kind=ddp", "optim.sam_rho=0.1", "optim.noise_every_steps=2"],
         "noise_every_steps=2: .* optim.noise_every_steps=0"),
        ("transformer", ["engine.kind=ddp", "engine.comm_hook=post_local_sgd", MIXED],
         "sparsity.kind=mixed: it needs the gradient of the whole batch"),
        ("transformer", ["engine.kind=ddp", "engine.comm_hook=post_local_sgd",
                         "optim.noise_every_steps=2"], "optim.noise_every_steps=0"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, kind: str, overrides: list[str], words: str
) -> None:
    path = write_recipe(tmp_path, kind)
    with pytest.raises(RecipeError, match=words):
        load_recipe(path, overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optim.name=adamv"], "did you mean 'adam"),
        (["optim.name=muon", "engine.zero_stage=2"], "flat slices"),
        (["optim.name=bnb_lamb8bit"], "leaves out the ratio of norms"),
        (["engine.template=none.json"], "none.json does not exist"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_the_model_is_built(
    tmp_path: Path, overrides: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.preflight.dry.meta_module", None)  # would fail if it were called
    with pytest.raises(RecipeError, match=words):
        dry_run(load_recipe(write_recipe(tmp_path, "mlstm"), overrides))


def test_states_of_few_bits_do_not_go_with_masks(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    path = write_recipe(tmp_path, "transformer")
    with pytest.raises(RecipeError, match="rounded in blocks"):
        dry_run(load_recipe(path, ["optim.name=bnb_adamw8bit", MIXED]))


def test_a_dry_run_and_a_plan_name_the_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.plan.cost import Machine
    from pipeline.plan.page import plan

    recipe = load_recipe(write_recipe(tmp_path, "mlstm"), ["engine.kind=ddp", "optim.name=muon"])
    dry_run(recipe)
    assert "no DeepSpeed, DDP, fp32" in capsys.readouterr().out
    assert "DDP" in plan(recipe, Machine(devices=2)).splitlines()[0]
