"""Export: the folder others load gives the trained model, or there is no folder."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from data_prep.errors import DataError, RecipeError
from data_prep.manifest import FileRecord
from data_prep.shards import Prepared
from data_prep.tokenizers import load_tokenizer
from pipeline.export import hf
from pipeline.export.card import hub_licence
from pipeline.export.hf import export_model, log_prob_difference
from pipeline.export.register import register_models
from pipeline.export.weights import read_weights
from pipeline.heads.factored import FactoredHead
from pipeline.recipe import Recipe, load_recipe
from pipeline.train.module import TrainModule, build_module
from pipeline.train.piece_files import snapshot, write
from pipeline.train.pieces import Piece, tied_names
from pipeline.train.state import save_tensors
from tests.pipeline.tiny import write_recipe

# The tensors here are so small that a second thread would only be waited for.
torch.set_num_threads(1)

KINDS = ("mlstm", "gpt2")


def write_weights(module: TrainModule, folder: Path) -> None:
    """What an engine of one rank writes of a module."""
    held = [
        Piece(name, p.shape, 0, p.detach().float().view(-1), {})
        for name, p in module.named_parameters()
    ]
    (folder / "state").mkdir()
    write(snapshot(held, {"tied": tied_names(module)}, copy=False), folder, 0)


def make_checkpoint(recipe: Recipe, seed: int = 99) -> TrainModule:
    """A stage-0 checkpoint of weights that no freshly built module has."""
    prepared = Prepared.open(recipe.data.folder)
    module = build_module(recipe, prepared).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    folder = recipe.run_folder / "checkpoints" / "global_step6"
    folder.mkdir(parents=True)
    if isinstance(module.head, FactoredHead):  # whose matrix has just been moved
        module.head.factors.u += 0.1
        module.head.factors.rebuild()
    if content := module.head.plugin_state():
        (folder / "plugins").mkdir()
        save_tensors(folder / "plugins" / "head.safetensors", content)
    write_weights(module, folder)
    trainer = {
        "clock": {"iteration": 6, "instances": 48, "applied": 6},
        "zero_stage": 0,
        "world_size": 1,
        "dtype": "fp32",
        "tokenizer_fingerprint": prepared.tokenizer_fingerprint,
        "data_fingerprint": prepared.fingerprint,
    }
    (folder / "trainer.json").write_text(json.dumps(trainer))
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [asdict(FileRecord.of(path, folder)) for path in paths]
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    return module


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Recipe, TrainModule]:
    recipe = load_recipe(write_recipe(tmp_path, request.param))
    return recipe, make_checkpoint(recipe)


def test_a_large_vocabulary_is_no_difference() -> None:
    """Words so rare that an fp32 sum, which stands at 1 by then, does not notice them."""
    scores = torch.full((1, 3, 400_000), -18.0)
    scores[:, :, :40] = 0.0
    log_probs = scores.double().log_softmax(dim=-1).float()
    assert (log_probs.log_softmax(dim=-1) - log_probs).abs().max() > 1e-4
    assert log_prob_difference(scores, log_probs) < 2e-6
    other = scores.clone()
    other[0, 1, 7] += 1e-3
    assert log_prob_difference(other, log_probs) == pytest.approx(1e-3, rel=0.05)


def trained_log_probs(module: TrainModule, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module.head.log_prob(module.backbone(ids, None, None)[0])


def elsewhere(program: str, export: Path, folder: Path) -> str:
    """The last line that a program says in a process that does not find this project."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "hf"), "HF_MODULES_CACHE": str(folder / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(export)],
        capture_output=True, text=True, cwd=folder, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_export_is_the_trained_model(run: tuple[Recipe, TrainModule]) -> None:
    recipe, module = run
    output = export_model(recipe)
    assert output.outputs == [recipe.export_folder]
    assert output.counts["checkpoint"] == "global_step6"
    assert output.counts["max_log_prob_difference"] <= recipe.export.tolerance
    assert not recipe.export_folder.with_name("export.tmp").exists()
    register_models()
    model = AutoModelForCausalLM.from_pretrained(recipe.export_folder).eval()
    ids = Prepared.open(recipe.data.folder).split("test").read(0, 30).astype("int64")
    inputs = torch.from_numpy(ids)[None]
    with torch.no_grad():
        found = model(input_ids=inputs).logits.log_softmax(dim=-1)
    torch.testing.assert_close(found, trained_log_probs(module, inputs), rtol=0, atol=1e-5)
    assert output.counts["parameters"] == sum(p.numel() for p in model.parameters())


def test_both_tokenizers_of_the_export_agree(run: tuple[Recipe, TrainModule]) -> None:
    recipe, _ = run
    export_model(recipe)
    ours = load_tokenizer(recipe.export_folder)
    assert ours.fingerprint == Prepared.open(recipe.data.folder).tokenizer_fingerprint
    text = "naïve  tea\n😀 & coffee"
    framing = len(ours.encode_prompt(""))
    library = AutoTokenizer.from_pretrained(recipe.export_folder)
    ids = library(text, add_special_tokens=False)["input_ids"]
    assert ids == ours.encode_prompt(text)[framing:].tolist()
    assert library.decode(ids) == text


def test_what_the_tokenizer_gives_the_model_takes(run: tuple[Recipe, TrainModule]) -> None:
    recipe, module = run
    export_model(recipe)
    register_models()
    model = AutoModelForCausalLM.from_pretrained(recipe.export_folder).eval()
    inputs = AutoTokenizer.from_pretrained(recipe.export_folder)("the tea", return_tensors="pt")
    assert ("attention_mask" in inputs) == (not recipe.recurrent)
    model.generation_config.eos_token_id = None
    out = model.generate(**inputs, max_new_tokens=3)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3
    with torch.no_grad():
        found = model(**inputs).logits.log_softmax(-1)
    expected = trained_log_probs(module, inputs["input_ids"])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_model_card_states_what_was_trained(run: tuple[Recipe, TrainModule]) -> None:
    recipe, _ = run
    export_model(recipe)
    card = (recipe.export_folder / "README.md").read_text()
    train = Prepared.open(recipe.data.folder).manifest["splits"]["train"]
    assert card.startswith("---\nlicense: other\n")
    assert "6 steps on 768 tokens" in card  # 48 instances of 16 tokens
    assert f"{train['documents']:,} documents" in card and f"{train['bytes']:,} bytes" in card
    assert "| corpus.jsonl | unknown |" in card and str(recipe.data.folder) not in card
    data_card = (Path(recipe.data.folder) / "README.md").read_text()
    assert (recipe.export_folder / "data_card.md").read_text() == data_card


def test_the_licence_is_that_of_the_text() -> None:
    assert hub_licence({"CC0-1.0"}) == "cc0-1.0"
    assert hub_licence({"CC0-1.0", "MIT"}) == hub_licence({"none stated"}) == "other"


def test_stock_tools_take_a_stock_architecture(tmp_path: Path) -> None:
    """In a process that has none of our code and is allowed to run none."""
    recipe = load_recipe(write_recipe(tmp_path, "gpt2"))
    make_checkpoint(recipe)
    export_model(recipe)
    program = (
        "import importlib.util, json, sys\n"
        "from transformers import AutoModelForSequenceClassification, pipeline\n"
        "assert importlib.util.find_spec('pipeline') is None\n"
        "write = pipeline('text-generation', sys.argv[1])\n"
        "text = write('the tea', max_new_tokens=4, do_sample=False)[0]['generated_text']\n"
        "model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=3)\n"
        "print(json.dumps([text, model.score.out_features]))\n"
    )
    text, classes = json.loads(elsewhere(program, recipe.export_folder, tmp_path))
    assert text.startswith("the tea") and classes == 3
    assert not list(recipe.export_folder.glob("*.py"))
    assert "trust_remote_code" not in (recipe.export_folder / "README.md").read_text()


def test_a_large_model_is_cut_into_files(run: tuple[Recipe, TrainModule]) -> None:
    recipe, _ = run
    small = recipe.export.model_copy(update={"max_shard_size": "10KB"})
    output = export_model(recipe.model_copy(update={"export": small}))
    files = sorted(recipe.export_folder.glob("model-*-of-*.safetensors"))
    index = json.loads((recipe.export_folder / "model.safetensors.index.json").read_text())
    assert len(files) > 1 and {*index["weight_map"].values()} == {file.name for file in files}
    assert output.counts["max_log_prob_difference"] <= recipe.export.tolerance


def test_generation_by_the_pipeline_of_transformers(run: tuple[Recipe, TrainModule]) -> None:
    recipe, _ = run
    export_model(recipe)
    register_models()
    write = pipeline("text-generation", str(recipe.export_folder))
    text = write("the tea", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert text.startswith("the tea")


def test_generation_goes_on_from_its_state(run: tuple[Recipe, TrainModule]) -> None:
    recipe, module = run
    export_model(recipe)
    register_models()
    model = AutoModelForCausalLM.from_pretrained(recipe.export_folder).eval()
    ids = torch.tensor([[10, 97, 98]])
    model.generation_config.eos_token_id = None
    out = model.generate(ids, max_new_tokens=8, do_sample=False)
    for length in range(3, 11):  # each new token is the best one after all tokens before it
        best = trained_log_probs(module, out[:, :length])[0, -1].argmax()
        assert int(best) == int(out[0, length])


def test_others_load_the_mlstm_with_its_own_code(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, "mlstm"))
    module = make_checkpoint(recipe)
    export_model(recipe)
    program = (
        "import importlib.util, json, sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "assert importlib.util.find_spec('pipeline') is None\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "with torch.no_grad():\n"
        "    logits = model.eval()(input_ids=torch.tensor([[10, 32, 116, 101, 97]])).logits\n"
        "print(json.dumps(logits.log_softmax(-1).tolist()))\n"
    )
    found = torch.tensor(json.loads(elsewhere(program, recipe.export_folder, tmp_path)))
    expected = trained_log_probs(module, torch.tensor([[10, 32, 116, 101, 97]]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_an_existing_folder_is_refused_and_untouched(run: tuple[Recipe, TrainModule]) -> None:
    recipe, _ = run
    recipe.export_folder.mkdir()
    (recipe.export_folder / "mine.txt").write_text("keep")
    with pytest.raises(RecipeError, match="exists, and nothing is overwritten"):
        export_model(recipe)
    assert [p.name for p in recipe.export_folder.iterdir()] == ["mine.txt"]
    assert (recipe.export_folder / "mine.txt").read_text() == "keep"


def test_what_a_killed_export_left_goes_and_what_one_is_writing_stays(
    run: tuple[Recipe, TrainModule],
) -> None:
    recipe, _ = run
    scratch = recipe.export_folder.with_name("export.tmp")
    scratch.mkdir()
    (scratch / "half").write_text("")
    at_work = os.open(scratch, os.O_RDONLY)
    fcntl.flock(at_work, fcntl.LOCK_EX)
    with pytest.raises(RecipeError, match="export.tmp exists, and nothing is overwritten"):
        export_model(recipe)
    assert (scratch / "half").exists()
    os.close(at_work)
    export_model(recipe)
    assert not scratch.exists() and not (recipe.export_folder / "half").exists()


def test_a_model_that_differs_gets_no_folder(
    run: tuple[Recipe, TrainModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _ = run
    write = hf._write

    def write_another(folder: Path, module: TrainModule, *given: Any) -> None:
        write(folder, module, *given)
        with torch.no_grad():
            module.backbone.output_weight().mul_(1.1)  # type: ignore[union-attr]

    monkeypatch.setattr(hf, "_write", write_another)
    with pytest.raises(DataError, match="log-probabilities differ"):
        export_model(recipe)
    assert sorted(p.name for p in recipe.run_folder.iterdir()) == ["checkpoints"]


def test_a_checkpoint_of_another_model_or_tokenizer_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "mlstm")
    make_checkpoint(load_recipe(path))
    with pytest.raises(DataError, match="does not fit"):
        export_model(load_recipe(path, ["model.hidden=25"]))
    other = write_recipe(
        tmp_path, "mlstm", tokenizer__prefix="##", data__folder=str(tmp_path / "p2")
    )
    with pytest.raises(DataError, match="was trained with tokenizer"):
        export_model(load_recipe(other))


def _zero_checkpoint(rank: int, folder: str, recipe_path: str, stage: int) -> dict[str, Any]:
    """One step at a ZeRO stage, saved; gives the fp32 masters by name."""
    from pipeline.train.engine import DeepSpeedEngine, init_distributed

    init_distributed(2)
    recipe = load_recipe(recipe_path)
    module = build_module(recipe, Prepared.open(recipe.data.folder))
    config = {
        "train_batch_size": 2,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": False},
        "bf16": {"enabled": True},
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    engine = DeepSpeedEngine(module, optimizer, config)
    ids = torch.arange(17)[None] + rank
    weights = torch.ones(1, 16)
    loss, _, _ = engine.forward(ids[:, :-1], ids[:, 1:], weights)
    engine.backward(loss / 32, last=True)
    engine.step()
    target = Path(folder) / "global_step1" / "state"
    target.mkdir(parents=True, exist_ok=True)
    write(engine.snapshot(copy=False), target.parent, rank)
    return {n: engine.get_parameter(p).clone() for n, p in engine.named_parameters()}


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_masters_of_a_partitioned_checkpoint_are_put_together(tmp_path: Path, stage: int) -> None:
    from tests.ranks import run_ranks

    path = write_recipe(tmp_path, "gpt2")
    masters = run_ranks(2, _zero_checkpoint, str(tmp_path / "ckpt"), str(path), stage)[0]
    folder = tmp_path / "ckpt" / "global_step1"
    (folder / "manifest.json").write_text('{"files": []}')
    weights = read_weights(folder)
    for name, master in masters.items():
        assert torch.equal(weights[name], master), name
    assert any((m != m.bfloat16().float()).any() for m in masters.values())  # not the rounded ones
    module = build_module(load_recipe(path), Prepared.open(load_recipe(path).data.folder))
    module.load_state_dict(weights, strict=True)  # tied names included


def test_a_folder_without_manifest_is_not_a_checkpoint(run: tuple[Recipe, TrainModule]) -> None:
    recipe, _ = run
    folder = recipe.run_folder / "checkpoints" / "global_step6"
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="no manifest.json"):
        read_weights(folder)
