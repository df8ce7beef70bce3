"""A task from its file to its numbers, for the evaluate stage and for the command `score`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from data_prep.errors import RecipeError
from data_prep.manifest import write_manifest
from pipeline.evaluate.tasks.causal_lm import CausalLM
from pipeline.evaluate.tasks.examples import read_examples
from pipeline.evaluate.tasks.metrics import choice_metrics, word_metrics
from pipeline.evaluate.tasks.requests import draw_shots, known_words, make_requests
from pipeline.evaluate.tasks.scoring import judge
from pipeline.recipe.tasks import TaskConfig


def run_task(model: CausalLM, section: TaskConfig, seed: int) -> dict[str, Any]:
    """What the model reaches on a task, with how it was asked.

    `cut` counts examples that are longer than the model can see and lost their beginning. DataError
    when a file is not what the task expects.
    """
    started = time.monotonic()
    examples = read_examples(section.task, section.path, section.limit)
    source = section.shots_path or section.path
    pool = read_examples(section.task, source, None) if section.shots else []
    before = draw_shots(examples, pool, section.shots, seed, source)
    requests = make_requests(model, examples, before)
    judgements, shared = judge(model, requests)
    if section.task == "lambada":
        found = word_metrics(judgements, known_words(model, requests), seed)
    else:
        found = choice_metrics(examples, judgements, seed)
    return {
        "task": section.task,
        "path": section.path,
        "shots": section.shots,
        "examples": len(examples),
        **found,
        "cut": sum(request.cut for request in requests),
        "context_read_once": shared,
        "seconds": round(time.monotonic() - started, 3),
    }


def print_score(folder: Path, section: TaskConfig, seed: int, json_path: Path | None) -> None:
    """Print what the model in `folder` reaches on a task, and write it to `json_path` if given.
    DataError when folder or file are not what is expected, RecipeError when it cannot be written.
    """
    if json_path is not None and not json_path.parent.is_dir():  # before anything is judged
        raise RecipeError(f"--json {json_path}: there is no folder {json_path.parent}; make it")
    found = run_task(CausalLM.load(folder), section, seed)
    for name, value in found.items():
        print(f"{name:<20} {_shown(value)}")
    if json_path is not None:
        write_manifest(json_path, found)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_shown, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)
