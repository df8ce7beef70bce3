"""The same numbers as the Language Model Evaluation Harness gives on the same file.

Prompts and metrics are those of the tasks that `lm_eval` ships, on local examples: real ones where
the corpora are there (see `tests/data_prep/test_real_data.py`), else a few made here.
"""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_prep.files import read_text
from pipeline.evaluate.tasks.causal_lm import CausalLM
from pipeline.evaluate.tasks.examples import read_examples
from pipeline.evaluate.tasks.requests import draw_shots, make_requests
from pipeline.evaluate.tasks.run import run_task
from pipeline.evaluate.tasks.scoring import judge
from pipeline.recipe.tasks import TaskConfig
from tests.pipeline.test_evaluate import exported
from tests.pipeline.test_tasks import ROWS

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install lm_eval)")

CORPORA = Path(os.environ.get("CORPORA", Path(__file__).parents[3] / "shared/data"))
# Of each task: where `lm_eval` keeps its own definition, and the real examples.
TASKS = {
    "lambada": ("lambada/lambada_openai.yaml", "lambada/lambada_test.jsonl.xz"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "eval_choice/hellaswag_val.jsonl.xz"),
    "piqa": ("piqa/piqa.yaml", "eval_choice/piqa_val.jsonl.xz"),
    "arc_easy": ("arc/arc_easy.yaml", "eval_choice/arc_easy_val.jsonl.xz"),
    "arc_challenge": ("arc/arc_challenge.yaml", "eval_choice/arc_challenge_val.jsonl.xz"),
    "winogrande": ("winogrande/default.yaml", "eval_choice/winogrande_val.jsonl.xz"),
}


@pytest.fixture(scope="module", params=["mlstm", "transformer"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    extra = {} if request.param == "mlstm" else {"model__config__n_positions": 1024}
    recipe = exported(tmp_path_factory.mktemp("run"), request.param, **extra)
    return CausalLM.load(recipe.export_folder, "cpu")


def write_lines(task: str, folder: Path, most: int) -> tuple[Path, Path]:
    """A file of at most `most` examples, and one with another single example."""
    real = CORPORA / TASKS[task][1]
    if real.is_file():
        rows = [json.loads(line) for line in islice(read_text(real).splitlines(), most + 1)]
    else:
        first = next(iter(ROWS[task]))  # the field that every example begins with
        rows = [ROWS[task], ROWS[task] | {first: f"Other {ROWS[task][first]}"}]
    tested, shown = folder / "tested.jsonl", folder / "shown.jsonl"
    tested.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    shown.write_text(json.dumps(rows[-1]) + "\n")
    return tested, shown


def by_lm_eval(model: CausalLM, task: str, folder: Path, shots: int) -> Any:
    """Its results and samples on `tested.jsonl`, with the example of `shown.jsonl` in front."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    files = {"validation": str(folder / "tested.jsonl"), "train": str(folder / "shown.jsonl")}
    definition = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / TASKS[task][0]),
        "task": "local", "tag": [], "dataset_path": "json", "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        "training_split": "train", "validation_split": "validation", "test_split": None,
        "fewshot_split": "train",
    }  # fmt: skip
    (folder / "local.yaml").write_text(yaml.safe_dump(definition))
    # A tokenizer of bytes has no token that begins a text, and none is needed here.
    begin = {"prefix_token_id": 10} if model.recurrent else {}
    return simple_evaluate(
        model=HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=8, device="cpu",
                   **begin),
        tasks=["local"], num_fewshot=shots, bootstrap_iters=0, log_samples=True,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )  # fmt: skip


OTHERS = [*((task, 0) for task in TASKS if task != "hellaswag"), ("arc_easy", 1), ("winogrande", 1)]


@pytest.mark.parametrize(
    ("task", "shots"),
    [
        ("hellaswag", 0),
        ("hellaswag", 1),
        *(pytest.param(*o, marks=pytest.mark.long) for o in OTHERS),
    ],
)
def test_the_same_numbers(
    model: CausalLM, task: Any, shots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    tested, shown = write_lines(task, tmp_path, 20)
    section = TaskConfig(task=task, path=str(tested), shots=shots, shots_path=str(shown))
    found = run_task(model, section, 1)
    theirs = by_lm_eval(model, task, tmp_path, shots)
    metrics = theirs["results"]["local"]
    assert found["accuracy"] == pytest.approx(metrics["acc,none"])
    if "acc_norm,none" in metrics:
        assert found["accuracy_normalised"] == pytest.approx(metrics["acc_norm,none"])
    if task == "lambada":
        assert found["ppl_per_word"] == pytest.approx(metrics["perplexity,none"], rel=1e-4)
    examples = read_examples(task, tested, None)
    before = draw_shots(examples, read_examples(task, shown, None), shots, 1, shown)
    judged, _ = judge(model, make_requests(model, examples, before))
    samples = sorted(theirs["samples"]["local"], key=lambda sample: sample["doc_id"])
    for judgement, sample in zip(judged, samples, strict=True):
        expected = [response[0] for response in sample["resps"]]
        log_probs = [float(log_prob) for log_prob, _ in expected]
        np.testing.assert_allclose(judgement.log_prob, log_probs, rtol=1e-4, atol=1e-3)
        assert judgement.greedy.tolist() == [str(greedy) == "True" for _, greedy in expected]
