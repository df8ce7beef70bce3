"""What the run will read: its shards, and the files that it will be judged by."""

from __future__ import annotations

from data_prep.errors import DataError
from data_prep.tokenizers import vocabulary_limit
from pipeline.recipe import Recipe
from pipeline.train.start import check_prepared


def data(recipe: Recipe) -> str:
    """Shards against the tokenizer beside them, both against the recipe, and against the model."""
    prepared = check_prepared(recipe)
    limit = vocabulary_limit(recipe.tokenizer)
    if prepared.vocab_size > limit:
        raise DataError(
            f"{recipe.data.folder} has ids up to {prepared.vocab_size - 1}, the recipe's tokenizer "
            f"up to {limit - 1}: run `python -m data_prep prepare RECIPE`"
        )
    train = prepared.split("train")
    if train.tokens <= recipe.batch.window_tokens:
        raise DataError(
            f"{recipe.data.folder}: {train.tokens} training tokens are less than one window of "
            f"batch.window_tokens={recipe.batch.window_tokens}: add text or shorten the window"
        )
    splits = prepared.manifest["splits"]
    listed = ", ".join(f"{name} {entry['tokens']:,}" for name, entry in splits.items())
    return f"tokens: {listed}; {prepared.vocab_size} ids"


def evaluation_files(recipe: Recipe) -> str:
    """Files that are read when training is over, hours from now."""
    count = recipe.check_evaluation_files()
    return f"{count} there" if count else "none named"
