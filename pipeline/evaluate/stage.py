"""The evaluate stage: everything the `eval` section asks of an exported model.

Results are written together at the end, so a failed stage leaves nothing that stands in the way of
running it again.
"""

from __future__ import annotations

import time
from typing import Any

from data_prep.errors import DataError, RecipeError
from data_prep.shards import Prepared
from pipeline.evaluate.heldout import heldout, text_loss
from pipeline.evaluate.last_word import last_word
from pipeline.evaluate.model import LanguageModel
from pipeline.evaluate.samples import samples
from pipeline.evaluate.sentiment import sentiment
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
    section = recipe.eval
    asked = {
        "texts": section.texts, "samples": section.prompts, "sentiment": section.sentiment,
        "transfer": section.transfer, "last_word": section.last_word,
    }  # fmt: skip
    names = ["heldout", *(name for name, wanted in asked.items() if wanted)]
    paths = {name: run.evals / f"{name}.json" for name in names}
    for path in paths.values():
        if path.exists():
            raise RecipeError(f"{path} exists, and nothing is overwritten: move it away")
    model = LanguageModel.load(recipe.export_folder)
    results: dict[str, Any] = {"heldout": _heldout(recipe, model)}
    results["texts"] = {
        name: text_loss(model, name, path, _reading(recipe)) for name, path in section.texts.items()
    }
    if section.prompts:
        results["samples"] = samples(
            model, section.prompts, section.sample_tokens, section.temperature, recipe.run.seed
        )
    if section.sentiment:
        results["sentiment"] = sentiment(
            model, section.sentiment, recipe.data.clean, recipe.run.seed
        )
    results["transfer"] = {
        name: transfer(model, name, texts, recipe.data.clean, recipe.run.seed)
        for name, texts in section.transfer.items()
    }
    results["last_word"] = {
        name: last_word(model, passages, recipe.data.clean, recipe.run.seed)
        for name, passages in section.last_word.items()
    }
    outputs = [run.write_json(paths[name], results[name]) for name in names]
    counts = {
        "bits_per_byte": results["heldout"].get("bits_per_byte"),
        "tokens": results["heldout"]["tokens"],
        "seconds": round(time.monotonic() - started, 3),
    }
    if section.sentiment:
        counts["sentiment_accuracy"] = results["sentiment"]["accuracy"]
    for name, found in (results["transfer"] | results["last_word"]).items():
        counts[f"{name}_accuracy"] = found["accuracy"]
    return StageOutput(outputs, counts)


def _heldout(recipe: Recipe, model: LanguageModel) -> dict[str, Any]:
    """The loss on the test split, beside that of byte frequencies."""
    prepared = Prepared.open(recipe.data.folder)
    if model.tokenizer.fingerprint != prepared.tokenizer_fingerprint:
        raise DataError(
            f"{recipe.export_folder} reads tokenizer {model.tokenizer.fingerprint[:12]}, "
            f"{prepared.folder} holds {prepared.tokenizer_fingerprint[:12]}: correct data.folder"
        )
    result = heldout(model, prepared.split("test"), _reading(recipe), recipe.eval.max_tokens)
    unigram = prepared.manifest["splits"]["test"]["unigram_bits_per_byte"]
    return {"split": "test"} | result | {"unigram_bits_per_byte": unigram}


def _reading(recipe: Recipe) -> Reading:
    window = recipe.batch.window_tokens
    return Reading(window, recipe.eval.stride_tokens or window, recipe.eval.batch)
