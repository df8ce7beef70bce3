"""From the `sparsity` section to the plug-ins of a run."""

from __future__ import annotations

from pipeline.protocols import StepPlugin
from pipeline.recipe import Recipe
from pipeline.recipe.sparsity import MixedConfig
from pipeline.sparsity.mixed import MixedSparsity


def build_plugins(recipe: Recipe) -> list[StepPlugin]:
    """None for dense training, the masks of a plan otherwise."""
    if not isinstance(recipe.sparsity, MixedConfig):
        return []
    window = recipe.batch.window_tokens
    return [
        MixedSparsity(
            recipe.sparsity, recipe.run.steps, window, recipe.batch.micro_batch * window,
            recipe.run.seed, recipe.optim.betas[1],
        )
    ]  # fmt: skip
