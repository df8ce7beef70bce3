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
from pipeline.audit.rated import Rated, read_rated
from pipeline.audit.verbatim import verbatim
from pipeline.evaluate.model import LanguageModel, prepared_for
from pipeline.export.folder import check_model_folder
from pipeline.recipe import Recipe, load_recipe
from pipeline.run_folder import RunFolder

_SPLIT = "test"
_MOST_RATINGS = 20  # labels beyond these are no ratings but names


def audit_runs(folders: Sequence[Path], limits: Limits) -> list[Path]:
    """Write evals/audit.json of each run; the paths. A finished audit with these limits of this
    export is left as it is.

    Before the first begins, RecipeError when a limit is below 1, a folder is no run or another
    audit lies there, DataError when there is no export. DataError later when an export's tokenizer
    is not that of the prepared text.
    """
    if low := [name for name, value in limits._asdict().items() if value < (name != "seed")]:
        raise RecipeError(f"--{low[0].replace('_', '-')} must be above 0")
    wanted = [_wanted(folder, limits) for folder in folders]
    return [_made(*each) for each in wanted]


def _wanted(folder: Path, limits: Limits) -> tuple[RunFolder, Recipe, Path, Limits]:
    """What the audit of a run is made from, checked."""
    run = RunFolder(folder)
    if not run.config.is_file():
        raise RecipeError(f"{folder} is not a run: it has no config.yaml; give a folder of runs/")
    recipe = load_recipe(run.config)
    export = Path(recipe.export.folder) if recipe.export.folder else folder / "export"
    check_model_folder(export)
    before = run.read_json(run.evals / "audit.json")
    if before is not None and before["settings"] != _settings(run, limits):
        raise RecipeError(
            f"{run.evals / 'audit.json'} was made with other limits or of another export, and "
            "nothing is overwritten: move it away"
        )
    return run, recipe, export, limits


def _settings(run: RunFolder, limits: Limits) -> dict[str, Any]:
    """What decides the numbers of an audit: the limits, and the export by its hashes."""
    made = run.read_json(run.stages / "export.json") or {}
    hashes = {file["path"]: file["sha256"] for file in made.get("outputs", [])}
    return limits._asdict() | {"split": _SPLIT, "export": hashes}


def _made(run: RunFolder, recipe: Recipe, export: Path, limits: Limits) -> Path:
    path = run.evals / "audit.json"
    if path.exists():
        return path
    started = time.monotonic()
    model = LanguageModel.load(export)
    prepared = prepared_for(model, export, recipe.data.folder)
    found = _audit(model, prepared, recipe, limits)
    seconds = round(time.monotonic() - started, 1)
    return run.write_json(path, {"settings": _settings(run, limits), **found, "seconds": seconds})


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
    rated = read_rated(recipe)
    # A head that only ranks tokens has no code lengths to compare.
    if model.has_probabilities:
        result |= _losses(model, unseen, train, rated, limits)
    if rated and (found := identity(model, rated.texts, rated.labels, limits)):
        result["identity"] = found
    return result


def _losses(
    model: LanguageModel,
    unseen: Sequence[Document],
    train: Sequence[Document],
    rated: Rated | None,
    limits: Limits,
) -> dict[str, Any]:
    """Bits per byte of the held-out documents by group, and of each of them for pairing."""
    nats, bits = _read(model, unseen, "held-out documents")
    sizes = [len(document.text.encode()) for document in unseen]
    rating, rated_by = by_rating(unseen, bits), f"label of the {_SPLIT} documents"
    if not 1 < len(rating) <= _MOST_RATINGS:
        rating, rated_by = _rated_groups(model, rated, limits)
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


def _rated_groups(model: LanguageModel, rated: Rated | None, limits: Limits) -> tuple[Groups, str]:
    """By the labels of a file of the recipe, where the shards keep none or too many."""
    if rated is None:
        return {}, ""
    places = np.random.default_rng(limits.seed).permutation(len(rated.texts))[: limits.documents]
    some = [
        Document(rated.texts[place], "", rated.names[rated.labels[place]])
        for place in np.sort(places).tolist()
    ]
    return by_rating(some, _read(model, some, "rated texts")[1]), f"label in {rated.origin}"


def _read(
    model: LanguageModel, documents: Sequence[Document], title: str
) -> tuple[list[np.ndarray], np.ndarray]:
    """Nats of every token of the documents, and bits of each whole one."""
    nats = text_nats(model, [document.text for document in documents], title)
    return nats, np.array([each.sum() for each in nats]) / np.log(2)
