"""Tasks from their files: what is asked, what is refused, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.errors import DataError, run_main
from pipeline.__main__ import main
from pipeline.evaluate.model import LanguageModel
from pipeline.evaluate.stage import evaluate_model
from pipeline.evaluate.tasks.causal_lm import CausalLM
from pipeline.evaluate.tasks.examples import Example, read_examples
from pipeline.evaluate.tasks.metrics import choice_metrics, word_metrics
from pipeline.evaluate.tasks.requests import draw_shots, make_requests
from pipeline.evaluate.tasks.scoring import Judgement
from pipeline.recipe import Recipe, load_recipe
from tests.pipeline.test_evaluate import exported

ROWS: dict[str, dict[str, Any]] = {
    "lambada": {"text": "The tea  was\n\n\"good\" he said"},
    "hellaswag": {
        "activity_label": "Tea", "ctx_a": "A man [step] sits.", "ctx_b": "he DRINKS",
        "endings": ["tea [title] Milk [x] now.", "it all."], "label": "1",
    },
    "piqa": {"goal": "Make tea", "sol1": "boil it", "sol2": "freeze it ", "label": 0},
    "arc_easy": {
        "question": "What is tea?",
        "choices": {"text": ["a drink", "a cup", "milk"], "label": ["1", "2", "3"]},
        "answerKey": "3",
    },
    "winogrande": {
        "sentence": "The cup did not fit the box, so _ was too large .", "option1": "the cup",
        "option2": "the box", "answer": "1",
    },
}  # fmt: skip
ROWS["arc_challenge"] = ROWS["arc_easy"]


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module", params=["mlstm", "transformer"])
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    extra = {} if request.param == "mlstm" else {"model__config__n_positions": 256}
    return exported(tmp_path_factory.mktemp("run"), request.param, **extra)


def test_examples_are_asked_as_others_ask_them(tmp_path: Path) -> None:
    path = {task: write(tmp_path / task, row) for task, row in ROWS.items()
            if (tmp_path / task).mkdir() is None}  # fmt: skip
    found = {task: read_examples(task, path[task], None)[0] for task in ROWS}  # type: ignore[arg-type]
    assert found["lambada"] == Example(('The tea  was\n\n"good" he',), ("said",), 0)
    assert found["hellaswag"] == Example(
        ("Tea: A man sits. He drinks",) * 2, ("tea.  Milk now.".replace("  ", " "), "it all."), 1
    )
    assert found["piqa"] == Example(
        ("Question: Make tea\nAnswer:",) * 2, ("boil it", "freeze it "), 0
    )
    assert (
        found["arc_easy"]
        == found["arc_challenge"]
        == Example(("Question: What is tea?\nAnswer:",) * 3, ("a drink", "a cup", "milk"), 2)
    )
    assert found["winogrande"] == Example(
        ("The cup did not fit the box, so the cup", "The cup did not fit the box, so the box"),
        ("was too large .",) * 2, 0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("task", "change", "problem"),
    [
        ("hellaswag", {"endings": None}, "no field 'endings'; the fields there are: activity"),
        ("hellaswag", {"endings": "one"}, "'endings' holds 'one', expected a list of texts"),
        ("hellaswag", {"label": ""}, "'label' holds '', expected a number from 0 on"),
        ("hellaswag", {"label": "2"}, "the right one of 2 options is not among them"),
        ("piqa", {"sol2": 7}, "'sol2' holds 7, expected text"),
        ("piqa", {"sol2": ""}, "an option is empty"),
        ("piqa", {"label": -1}, "'label' holds -1, expected a number"),
        ("arc_easy", {"answerKey": "D"}, "'answerKey' holds 'D', the labels are 1, 2, 3"),
        ("arc_easy", {"choices": ["a"]}, "'choices' is no object"),
        ("winogrande", {"sentence": "no gap"}, "'sentence' has no '_'"),
        ("winogrande", {"answer": "0"}, "the right one of 2 options is not among them"),
        ("lambada", {"text": "alone"}, "'text' ends in 'alone', expected a word with a context"),
    ],
)
def test_a_wrong_shape_is_named(
    tmp_path: Path, task: Any, change: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path, ROWS[task], ROWS[task] | change)
    assert len(read_examples(task, path, 1)) == 1
    with pytest.raises(DataError) as caught:
        read_examples(task, path, None)
    assert f"examples.jsonl, line 2: {problem}" in str(caught.value)
    assert f"an example of {task} has " in str(caught.value)
    assert caught.value.exit_code == 3


def test_no_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no examples.*goal, sol1, sol2"):
        read_examples("piqa", write(tmp_path), None)
    with pytest.raises(DataError, match="does not exist"):
        read_examples("piqa", tmp_path / "other.jsonl", None)


def test_shots_are_seeded_and_never_the_tested_example() -> None:
    examples = [Example((f"q{i}",) * 2, ("yes", "no"), i % 2) for i in range(6)]
    pool = [*examples, examples[0]]
    shown = draw_shots(examples, pool, 3, 1, "pool")
    assert shown == draw_shots(examples, pool, 3, 1, "pool")
    assert shown[:2] == draw_shots(examples[:2], pool, 3, 1, "pool")
    assert shown != draw_shots(examples, pool, 3, 2, "pool")
    for example, text in zip(examples, shown, strict=True):
        parts = text.removesuffix("\n\n").split("\n\n")
        assert len(parts) == 3
        assert example.answered not in parts
        assert {*parts} <= {other.answered for other in examples}
    assert draw_shots(examples[:1], [examples[1]], 1, 1, "pool") == ["q1 no\n\n"]
    with pytest.raises(DataError, match="pool holds 7 examples, 1 too few to show 6"):
        draw_shots(examples, pool, 6, 1, "pool")


def test_white_space_goes_to_the_option(recipe: Recipe) -> None:
    model = CausalLM.load(recipe.export_folder, "cpu")
    context, option = "The tea\n ", "was good"
    found = make_requests(model, [Example((context,), (option,), 0)], ["It is.\n\n"])
    ids = found[0].options[0].ids
    assert ids == model.tokenizer("It is.\n\nThe tea\n  was good")["input_ids"]
    context_ids = model.tokenizer("It is.\n\nThe tea")["input_ids"]
    assert ids[: -found[0].options[0].judged] == context_ids
    assert make_requests(model, [], []) == []


def test_metrics_of_choices_that_are_known() -> None:
    options = ("a", "bbbb")
    examples = [Example(("q", "q"), options, right) for right in (0, 1, 1)]
    judged = [Judgement(np.array(nats), np.zeros(2, bool)) for nats in
              ([-1.0, -2.0], [-1.0, -2.0], [-3.0, -2.0])]  # fmt: skip
    found = choice_metrics(examples, judged, seed=1)
    # The first is chosen twice, then the second; per character, the second is always chosen.
    assert found["accuracy"] == 2 / 3
    assert found["accuracy_normalised"] == 2 / 3
    assert choice_metrics(examples[1:2], judged[1:2], 1)["accuracy"] == 0
    assert choice_metrics(examples[1:2], judged[1:2], 1)["accuracy_normalised"] == 1
    assert found["chance"] == 0.5
    same = [Example(("p", "q"), ("a", "a"), 0)]
    assert "accuracy_normalised" not in choice_metrics(same, judged[:1], 1)
    words = [Judgement(np.array([-2.0]), np.array([True])), Judgement(np.array([-4.0]),
             np.array([False]))]  # fmt: skip
    found = word_metrics(words, np.array([True, True]), 1)
    assert found["accuracy"] == 0.5 and found["unknown"] == 0
    assert found["ppl_per_word"] == pytest.approx(np.exp(3))
    # What stands for a word that the vocabulary lacks is no word that was said.
    found = word_metrics(words, np.array([False, True]), 1)
    assert found["accuracy"] == 0 and found["unknown"] == 1
    assert found["ppl_per_word"] == pytest.approx(np.exp(4))


def test_the_stage_and_the_command_find_the_same(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [ROWS["piqa"] | {"goal": f"Make {n} tea", "label": n % 2} for n in range(5)]
    path = write(tmp_path, *rows)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    asked = load_recipe(tmp_path / "recipe.yaml", [
        f"run.folder={tmp_path / 'runs'}", f"export.folder={recipe.export_folder}",
        f"eval.tasks=[{{task: piqa, path: {path}, shots: 1}}, "
        f"{{task: lambada, path: {write_lambada(tmp_path)}}}]", "eval.prompts=[]",
    ])  # fmt: skip
    output = evaluate_model(asked)
    written = json.loads((asked.run_folder / "evals/tasks.json").read_text())
    assert [found["task"] for found in written] == ["piqa", "lambada"]
    assert output.counts["piqa_1_shots_accuracy"] == written[0]["accuracy"]
    assert written[0]["examples"] == 5
    assert written[1]["ppl_per_word"] > 1
    command = ["score", str(recipe.export_folder), str(path), "--task", "piqa", "--shots", "1",
               "--seed", str(asked.run.seed), "--json", str(tmp_path / "out.json")]  # fmt: skip
    assert run_main(main, command) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert {**found, "seconds": 0} == {**written[0], "seconds": 0}
    assert f"accuracy             {found['accuracy']:.4f}" in capsys.readouterr().out


def write_lambada(folder: Path) -> Path:
    path = folder / "lambada.jsonl"
    path.write_text(json.dumps(ROWS["lambada"]) + "\n")
    return path


def test_the_command_refuses_what_is_no_export(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, ROWS["piqa"])
    checkpoint = str(recipe.run_folder / "checkpoints")
    assert run_main(main, ["score", checkpoint, str(path), "--task", "piqa"]) == 3
    assert "make an export with `python -m pipeline export RECIPE`" in capsys.readouterr().err
    export = str(recipe.export_folder)
    assert run_main(main, ["score", export, str(path), "--task", "arc_easy"]) == 3
    assert "line 1: no field 'choices'" in capsys.readouterr().err
    assert run_main(main, ["score", export, str(path), "--task", "piqa", "--limit", "0"]) == 2
    assert run_main(main, ["score", export, str(path), "--task", "piqa", "--shots", "1"]) == 3
    assert "too few to show 1 beside the tested one" in capsys.readouterr().err


def test_another_vocabulary_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = CausalLM.load(recipe.export_folder, "cpu")
    config = AutoConfig.for_model("gpt2", vocab_size=200, n_layer=1, n_head=1, n_embd=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"a model of 200 ids with a tokenizer of \d+: it is"):
        CausalLM.load(tmp_path)
    for name in ("tokenizer.json", "tokenizer_card.json"):
        (tmp_path / name).write_bytes((recipe.export_folder / name).read_bytes())
    with pytest.raises(DataError, match="a model of 200 ids"):
        LanguageModel.load(tmp_path)


def test_a_folder_without_its_parts_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    source = recipe.export_folder
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    with pytest.raises(DataError, match="holds no model that can be loaded"):
        CausalLM.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    with pytest.raises(DataError, match="holds no tokenizer"):
        CausalLM.load(tmp_path)
    foreign = {"model_type": "foreign", "auto_map": {"AutoConfig": "x.C", "AutoModelForCausalLM":
               "x.M"}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(foreign))
    (tmp_path / "x.py").write_text("raise SystemExit('this code must not run')")
    with pytest.raises(DataError, match="code in a folder is never run"):
        CausalLM.load(tmp_path)


def test_a_head_without_probabilities_is_refused(recipe: Recipe) -> None:
    model = CausalLM.load(recipe.export_folder, "cpu").model
    model.config.has_probabilities = False
    with pytest.raises(DataError, match="its head gives no probabilities"):
        CausalLM.with_tokenizer(model, recipe.export_folder, torch.device("cpu"))
