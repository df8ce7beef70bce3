"""`--dry-run`: everything that can be said about a recipe without its data and without memory."""

from __future__ import annotations

import os

from pipeline.models.build import parameter_count
from pipeline.plan.memory import memory_of, meta_module
from pipeline.recipe import Recipe
from pipeline.recipe.deepspeed import template_path
from pipeline.recipe.sparsity import MixedConfig
from pipeline.sparsity.design import design
from pipeline.train.loggers import check_loggers
from pipeline.train.module import TrainModule
from pipeline.train.start import engine_config, run_dtype


def valid_module(recipe: Recipe, world_size: int) -> TrainModule:
    """The model on the meta device, once recipe and DeepSpeed JSON are seen to be valid for so
    many devices. RecipeError otherwise."""
    check_loggers(recipe.run.loggers)
    engine_config(recipe, world_size, run_dtype(recipe))
    module = meta_module(recipe)
    if isinstance(recipe.sparsity, MixedConfig):
        design(recipe.sparsity, module.backbone, module.head, recipe.batch.window_tokens)
    return module


def dry_run(recipe: Recipe) -> None:
    """Validate recipe and DeepSpeed JSON and build the model on the meta device."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    dtype, batch = run_dtype(recipe), recipe.batch
    module = valid_module(recipe, world_size)
    print(f"recipe           {recipe.run.name}: valid")
    ddp = recipe.engine.kind == "ddp"
    made_from = "no DeepSpeed" if ddp else f"{template_path(recipe)}: valid"
    print(f"engine           {made_from}, {recipe.engine.label}, {dtype}")
    print(
        f"batch            {batch.global_batch} = {world_size} devices x {batch.micro_batch} "
        f"micro-batch x {recipe.accumulation(world_size)} accumulation, "
        f"{batch.window_tokens} tokens each"
    )
    print(f"model            {parameter_count(module) / 1e6:.2f} M parameters (meta device)")
    forward = module.backbone.flops(batch.window_tokens)
    flops = 3 * (forward.total + module.head.dense_flops())
    tokens = batch.tokens_after(recipe.run.steps)
    print(f"training         {tokens / 1e6:.1f} M tokens, {flops * tokens:.3g} FLOPs")
    if isinstance(recipe.sparsity, MixedConfig):
        found = design(recipe.sparsity, module.backbone, module.head, batch.window_tokens)
        print(f"sparsity         {found.summary()}")
    for line in memory_of(recipe, module, world_size, dtype).lines():
        print(f"memory           {line}")
