"""Exports of heads that are no plain softmax: their logits are the head's own log-probabilities."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from data_prep.errors import DataError, RecipeError
from pipeline.evaluate.model import LanguageModel
from pipeline.evaluate.samples import samples
from pipeline.evaluate.stage import evaluate_model
from pipeline.export.hf import export_model
from pipeline.export.register import register_models
from pipeline.export.scored.modeling_scored import ScoredForCausalLM
from pipeline.recipe import load_recipe
from pipeline.report.headline import bits_verdict
from tests.pipeline.test_evaluate import exported
from tests.pipeline.test_export import make_checkpoint
from tests.pipeline.tiny import write_recipe

HEADS = {
    "taylor": {"kind": "gram", "loss": "taylor", "learned_scale": True},
    "spherical": {"kind": "gram", "loss": "spherical", "epsilon": 0.05},
    "z": {"kind": "gram", "loss": "z"},
    "squared": {"kind": "gram", "loss": "squared"},
    "factored": {"kind": "factored", "loss": "taylor", "lr": 0.1},
    "sharded": {"kind": "gram", "loss": "taylor", "sharded": True},
    "adaptive": {"kind": "adaptive", "cutoffs": [40, 120]},
    "phased": {"kind": "phased", "phases": [
        {"until": 0.5, "head": {"kind": "softmax"}},
        {"until": 1.0, "head": {"kind": "gram", "loss": "taylor"}},
    ]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        (name, tied)
        for name in HEADS
        for tied in (True, False)
        if not (tied and name in ("factored", "sharded"))
    ],
)
def test_the_export_gives_the_heads_probabilities(tmp_path: Path, name: str, tied: bool) -> None:
    recipe = load_recipe(
        write_recipe(tmp_path, "transformer", head=HEADS[name]),
        [f"model.config.tie_word_embeddings={str(tied).lower()}"],
    )
    module = make_checkpoint(recipe)
    output = export_model(recipe)  # proves the log-probabilities of the validation split
    assert output.counts["max_log_prob_difference"] < 1e-4
    register_models()
    model = AutoModelForCausalLM.from_pretrained(recipe.export_folder).eval()
    assert isinstance(model, ScoredForCausalLM)
    ids = torch.tensor([[3, 50, 7, 200, 9, 31]])
    with torch.no_grad():
        module.eval()
        module.head.begin_step(_end())
        module.head.settle()
        expected = module.head.log_prob(module.backbone(ids, None, None)[0])
        found = model(ids).logits.log_softmax(dim=-1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        if model.config.has_probabilities:
            weights = torch.ones(1, 5)
            loss, _ = module.head(module.backbone(ids[:, :-1], None, None)[0], ids[:, 1:], weights)
            picked = found[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).sum()
            assert -picked.item() == pytest.approx(loss.item(), rel=1e-4)


def _end():  # type: ignore[no-untyped-def]
    from pipeline.clock import Clock

    return Clock(iteration=6, instances=48, applied=6)


def test_generation_with_the_cache_is_generation_without_it(tmp_path: Path) -> None:
    recipe = exported(tmp_path, "transformer", head=HEADS["taylor"])
    model = LanguageModel.load(recipe.export_folder, "cpu")
    ids = torch.tensor([[3, 50, 7]])
    whole = model.causal_lm.generate(ids, do_sample=False, max_new_tokens=6, use_cache=False)
    cached = model.causal_lm.generate(ids, do_sample=False, max_new_tokens=6, use_cache=True)
    assert torch.equal(whole, cached)
    assert samples(model, ["the tea"], 5, 1.0, 1)[0]["tokens"] >= 1


def test_sampling_follows_the_trained_distribution(tmp_path: Path) -> None:
    recipe = exported(tmp_path, "transformer", head=HEADS["spherical"])
    model = LanguageModel.load(recipe.export_folder, "cpu")
    ids = torch.tensor([[3, 50, 7]])
    with torch.no_grad():
        expected = model.causal_lm(ids).logits[0, -1].softmax(dim=-1)
    torch.manual_seed(0)
    drawn = model.causal_lm.generate(
        ids.expand(4000, -1), do_sample=True, max_new_tokens=1, top_k=0, top_p=1.0
    )[:, -1]
    counts = torch.bincount(drawn, minlength=len(expected)) / 4000
    assert (counts - expected).abs().max() < 5 * (expected.max() / 4000).sqrt()


@pytest.mark.parametrize("name", ["taylor", "z", "adaptive"])
def test_every_evaluation_reads_it(tmp_path: Path, name: str) -> None:
    recipe = exported(tmp_path, "transformer", head=HEADS[name])
    evaluate_model(recipe)
    found = json.loads((recipe.run_folder / "evals" / "heldout.json").read_text())
    assert 0 <= found["top1"] <= found["top10"] <= 1
    assert ("bits_per_byte" in found) == (name != "z")
    assert "bits per byte" in bits_verdict(found.get("bits_per_byte"), 4.5).lower()
    model = LanguageModel.load(recipe.export_folder, "cpu")
    vectors = model.features(["good tea", "bad coffee"])
    hidden = model.model.base_model(torch.from_numpy(model.framing.encode(["good tea"], None)[0]
                                    .astype("int64"))[None]).last_hidden_state  # fmt: skip
    assert vectors.shape == (2, hidden.shape[-1])
    torch.testing.assert_close(
        torch.from_numpy(vectors[0]), hidden[0, model.framing.prefix :].mean(dim=0).detach()
    )


def test_others_load_it_by_the_code_beside_it(tmp_path: Path) -> None:
    recipe = exported(tmp_path, "transformer", head=HEADS["taylor"])
    script = (
        "from transformers import AutoModelForCausalLM; import torch\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(recipe.export_folder)!r}, "
        "trust_remote_code=True)\n"
        "print(m(torch.tensor([[3, 4]])).logits.shape[-1] == m.config.text_config.vocab_size)"
    )
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr
    readme = (recipe.export_folder / "README.md").read_text()
    assert "trust_remote_code=True" in readme


def test_an_export_that_gives_other_probabilities_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, "transformer", head=HEADS["taylor"]))
    make_checkpoint(recipe)
    monkeypatch.setattr(ScoredForCausalLM, "scores", lambda self, logits: logits.float())
    with pytest.raises(DataError, match="log-probabilities differ"):
        export_model(recipe)
    assert not recipe.export_folder.exists()


def test_an_mlstm_with_such_a_head_is_refused_before_it_trains(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "mlstm")
    with pytest.raises(RecipeError, match="head.kind=gram with model.kind=mlstm"):
        load_recipe(path, ["head={kind: gram}"])
