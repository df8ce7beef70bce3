"""The audit of a run: every part of it, written to evals/audit.json beside the run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.errors import DataError, RecipeError
from data_prep.shards import Prepared
from pipeline.audit.documents import Document, choose_documents, first_documents
from pipeline.audit.groups import Groups, by_length, by_rating, by_source, summary
from pipeline.audit.identity import identity
from pipeline.audit.limits import Limits
from pipeline.audit.losses import text_nats
from pipeline.audit.personal import find_passages, in_free_text, led_up_to
from pipeline.audit.rarity import by_rarity, count_words
from pipeline.audit.verbatim import verbatim
from pipeline.evaluate.labelled import read_labelled
from pipeline.evaluate.model import LanguageModel
from pipeline.evaluate.sentiment import rated_texts
from pipeline.recipe import Recipe, load_recipe
from pipeline.run_folder import RunFolder

_SPLIT = "test"
_MOST_RATINGS = 20  # labels beyond these are no ratings but names


def audit_run(folder: Path, limits: Limits) -> Path:
    """Write evals/audit.json of a run; the path. A finished audit with these limits of this export
    is left as it is.

    RecipeError when the folder is no run, or another audit lies there; DataError when there is no
    export, or its tokenizer is not that of the prepared text.
    """
    run = RunFolder(folder)
    if not run.config.is_file():
        raise RecipeError(f"{folder} is not a run: it has no config.yaml; give a folder of runs/")
    recipe = load_recipe(run.config)
    export = Path(recipe.export.folder) if recipe.export.folder else folder / "export"
    path = run.evals / "audit.json"
    made = run.read_json(run.stages / "export.json") or {}
    settings = limits._asdict() | {"split": _SPLIT, "export": made.get("outputs")}
    if (before := run.read_json(path)) is not None:
        if before["settings"] == settings:
            return path
        raise RecipeError(
            f"{path} was made with other limits or of another export, and nothing is overwritten: "
            "move it away"
        )
    started = time.monotonic()
    model = LanguageModel.load(export)
    prepared = Prepared.open(recipe.data.folder)
    if model.tokenizer.fingerprint != prepared.tokenizer_fingerprint:
        raise DataError(
            f"{export} reads tokenizer {model.tokenizer.fingerprint[:12]}, {prepared.folder} holds "
            f"{prepared.tokenizer_fingerprint[:12]}: correct data.folder in {run.config}"
        )
    found = _audit(model, prepared, recipe, limits)
    seconds = round(time.monotonic() - started, 1)
    return run.write_json(path, {"settings": settings, **found, "seconds": seconds})


def _audit(
    model: LanguageModel, prepared: Prepared, recipe: Recipe, limits: Limits
) -> dict[str, Any]:
    tokenizer, seed = model.tokenizer, limits.seed
    unseen = choose_documents(prepared, tokenizer, _SPLIT, limits.documents, seed)
    if not unseen:
        raise DataError(f"the {_SPLIT} split of {prepared.folder} has no documents to audit with")
    seen = choose_documents(prepared, tokenizer, "train", limits.documents, seed)
    train = list(first_documents(prepared, tokenizer, "train", limits.train_tokens))
    result: dict[str, Any] = {
        "verbatim": {
            "train": verbatim(model, seen, limits),
            "held_out": verbatim(model, unseen, limits),
        },
        "personal": {
            "free_text": in_free_text(model, limits),
            "led_up_to": led_up_to(model, find_passages(train, limits.documents), limits),
        },
    }
    # A head that only ranks tokens has no code lengths to compare.
    if model.has_probabilities:
        result |= _losses(model, unseen, train, recipe, limits)
    if recipe.eval.sentiment:
        texts, labels = rated_texts(recipe.eval.sentiment, recipe.data.clean)
        result["identity"] = identity(model, texts, labels, limits)
    return result


def _losses(
    model: LanguageModel,
    unseen: Sequence[Document],
    train: Sequence[Document],
    recipe: Recipe,
    limits: Limits,
) -> dict[str, Any]:
    """Bits per byte of the held-out documents by group, and of each of them for pairing."""
    nats = text_nats(model, [document.text for document in unseen], "held-out documents")
    bits = np.array([each.sum() for each in nats]) / np.log(2)
    sizes = [len(document.text.encode()) for document in unseen]
    rating, rated_by = _ratings(model, unseen, bits, recipe, limits)
    return {
        "losses": {
            "all": {"all documents": summary(sizes, bits)},
            "source": by_source(unseen, bits),
            "rating": rating,
            "length": by_length(unseen, bits),
            "words": by_rarity(unseen, nats, model.tokenizer, count_words(train)),
        },
        "rated_by": rated_by,
        "documents": {
            "keys": [document.key for document in unseen],
            "bytes": sizes,
            "bits": bits.tolist(),
        },
    }


def _ratings(
    model: LanguageModel,
    unseen: Sequence[Document],
    bits: np.ndarray,
    recipe: Recipe,
    limits: Limits,
) -> tuple[Groups, str | None]:
    """By the labels that the shards keep, else by those of a labelled file of the recipe; and where
    they are from. Nothing where neither has a few labels."""
    found = by_rating(unseen, bits)
    if 1 < len(found) < _MOST_RATINGS:
        return found, f"label of the {_SPLIT} documents"
    if recipe.eval.sentiment:
        texts, labels = rated_texts(recipe.eval.sentiment, recipe.data.clean)
        names = np.where(labels == 1, "positive", "negative")
        rated = [Document(text, "", name) for text, name in zip(texts, names.tolist(), strict=True)]
        return _of_file(model, rated, limits), f"rating in {recipe.eval.sentiment.path}"
    for section in recipe.eval.transfer.values():
        file = section.test or section.train
        labelled = read_labelled(file, section.text_field, section.label_field, recipe.data.clean)
        rated = [Document(one.text, "", str(one.label)) for one in labelled]
        return _of_file(model, rated, limits), f"label in {file}"
    return {}, None


def _of_file(model: LanguageModel, rated: Sequence[Document], limits: Limits) -> Groups:
    places = np.random.default_rng(limits.seed).permutation(len(rated))[: limits.documents]
    some = [rated[place] for place in np.sort(places)]
    nats = text_nats(model, [document.text for document in some], "rated texts")
    return by_rating(some, np.array([each.sum() for each in nats]) / np.log(2))
