"""The evaluate stage: everything the `eval` section asks of an exported model.

Results are written together at the end, so a failed stage leaves nothing that stands in the way of
running it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from data_prep.errors import RecipeError
from pipeline.evaluate.heldout import heldout, text_loss
from pipeline.evaluate.last_word import last_word
from pipeline.evaluate.model import LanguageModel, prepared_for
from pipeline.evaluate.samples import samples
from pipeline.evaluate.sentiment import sentiment
from pipeline.evaluate.tasks.causal_lm import CausalLM
from pipeline.evaluate.tasks.run import run_task
from pipeline.evaluate.transfer import transfer
from pipeline.evaluate.walk import Reading
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder, StageOutput


def evaluate_model(recipe: Recipe) -> StageOutput:
    """Write evals/heldout.json, and the other files of its folder that the recipe asks for.

    RecipeError when one of them exists already; DataError when there is no export, when it was made
    with another tokenizer, or when an evaluation's text is not what the recipe says.
    """
    started = time.monotonic()
    run = RunFolder(recipe.run_folder)
    paths = {name: run.evals / f"{name}.json" for name in _asked(recipe)}
    for path in paths.values():
        if path.exists():
            raise RecipeError(f"{path} exists, and nothing is overwritten: move it away")
    model = LanguageModel.load(recipe.export_folder)
    results = {name: _EVALUATIONS[name](recipe, model) for name in paths}
    outputs = [run.write_json(path, results[name]) for name, path in paths.items()]
    return StageOutput(
        outputs, _counts(results) | {"seconds": round(time.monotonic() - started, 3)}
    )


def _asked(recipe: Recipe) -> list[str]:
    """Every evaluation, in the order it is made; all but the first where the recipe has some."""
    section = recipe.eval
    wanted: dict[str, Any] = {
        "heldout": True, "texts": section.texts, "samples": section.prompts,
        "sentiment": section.sentiment, "transfer": section.transfer,
        "last_word": section.last_word, "tasks": section.tasks,
    }  # fmt: skip
    return [name for name, value in wanted.items() if value]


def _counts(results: dict[str, Any]) -> dict[str, Any]:
    counts = {
        "bits_per_byte": results["heldout"].get("bits_per_byte"),
        "tokens": results["heldout"]["tokens"],
    }
    if "sentiment" in results:
        counts["sentiment_accuracy"] = results["sentiment"]["accuracy"]
    for name, found in (results.get("transfer", {}) | results.get("last_word", {})).items():
        counts[f"{name}_accuracy"] = found["accuracy"]
    for found in results.get("tasks", []):
        counts[f"{found['task']}_{found['shots']}_shots_accuracy"] = found["accuracy"]
    return counts


def _heldout(recipe: Recipe, model: LanguageModel) -> dict[str, Any]:
    """The loss on the test split, beside that of byte frequencies."""
    prepared = prepared_for(model, recipe.export_folder, recipe.data.folder)
    result = heldout(model, prepared.split("test"), _reading(recipe), recipe.eval.max_tokens)
    unigram = prepared.manifest["splits"]["test"]["unigram_bits_per_byte"]
    return {"split": "test"} | result | {"unigram_bits_per_byte": unigram}


def _texts(recipe: Recipe, model: LanguageModel) -> dict[str, Any]:
    reading = _reading(recipe)
    return {name: text_loss(model, name, path, reading) for name, path in recipe.eval.texts.items()}


def _samples(recipe: Recipe, model: LanguageModel) -> list[dict[str, Any]]:
    section = recipe.eval
    return samples(
        model, section.prompts, section.sample_tokens, section.temperature, recipe.run.seed
    )


def _sentiment(recipe: Recipe, model: LanguageModel) -> dict[str, Any]:
    assert recipe.eval.sentiment is not None
    return sentiment(model, recipe.eval.sentiment, recipe.data.clean, recipe.run.seed)


def _transfer(recipe: Recipe, model: LanguageModel) -> dict[str, Any]:
    return {
        name: transfer(model, name, section, recipe.data.clean, recipe.run.seed)
        for name, section in recipe.eval.transfer.items()
    }


def _last_word(recipe: Recipe, model: LanguageModel) -> dict[str, Any]:
    return {
        name: last_word(model, section, recipe.data.clean, recipe.run.seed)
        for name, section in recipe.eval.last_word.items()
    }


def _tasks(recipe: Recipe, model: LanguageModel) -> list[dict[str, Any]]:
    judged = CausalLM.with_tokenizer(model.causal_lm, recipe.export_folder, model.device)
    return [run_task(judged, task, recipe.run.seed) for task in recipe.eval.tasks]


def _reading(recipe: Recipe) -> Reading:
    window = recipe.batch.window_tokens
    return Reading(window, recipe.eval.stride_tokens or window, recipe.eval.batch)


_EVALUATIONS: dict[str, Callable[[Recipe, LanguageModel], Any]] = {
    "heldout": _heldout,
    "texts": _texts,
    "samples": _samples,
    "sentiment": _sentiment,
    "transfer": _transfer,
    "last_word": _last_word,
    "tasks": _tasks,
}
