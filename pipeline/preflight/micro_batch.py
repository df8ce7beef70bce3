"""One micro-batch forward and backward on this machine, when it fits and does not take long."""

from __future__ import annotations

import time

import numpy as np
import torch

from data_prep.errors import Diverged, RecipeError
from data_prep.shards import Prepared
from pipeline.data.loader import micro_batch
from pipeline.plan.memory import GIB, memory_of
from pipeline.preflight.room import free_memory
from pipeline.recipe import Recipe
from pipeline.train.module import TrainModule, build_module
from pipeline.train.start import run_dtype

_LONGEST_S = 10.0
_FLOPS_PER_S = {"cpu": 2e10, "cuda": 2e13}  # low guesses: better to leave it out than to wait
_TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def one_micro_batch(recipe: Recipe, module: TrainModule) -> str:
    """The loss and the time of a first micro-batch of the run's own text; else why it was left
    out. `module` has no memory. RecipeError when it fails, Diverged when its loss is no number."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = recipe.batch
    # On one device alone, whatever ZeRO would share with others or offload; without the optimizer.
    need = sum(sum(place.values()) for place in memory_of(recipe, module, 1, run_dtype(recipe)))
    if need > free_memory()[0]:
        return f"does not fit here alone ({need / GIB:.1f} GiB): the model was built without memory"
    forward = module.backbone.flops(batch.window_tokens).total + module.head.dense_flops()
    seconds = 3 * forward * batch.micro_batch * batch.window_tokens / _FLOPS_PER_S[device.type]
    if seconds > _LONGEST_S:
        return f"would take some {seconds:.0f} s on {device}: the model was built without memory"
    began = time.monotonic()
    try:
        loss = _loss_after_backward(recipe, device)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"a micro-batch fails on {device} ({reason:.300}): lower batch.micro_batch, or choose "
            "another precision or model"
        ) from error
    if not np.isfinite(loss):
        raise Diverged(f"the first loss on {device} is {loss}: another precision or seed is needed")
    return f"loss {loss:.3f} a token after {time.monotonic() - began:.1f} s on {device}"


def _loss_after_backward(recipe: Recipe, device: torch.device) -> float:
    """Loss of a token, in the unit of the head; the gradients have been computed."""
    prepared = Prepared.open(recipe.data.folder, verify=False)
    split, window = prepared.split("train"), recipe.batch.window_tokens
    starts = np.arange(recipe.batch.micro_batch) * window % (split.tokens - window)
    resets = split.resets(starts, window) if recipe.recurrent else None
    rows = slice(0, recipe.batch.micro_batch)
    found = micro_batch(split.windows(starts, window + 1), resets, rows).to(device)
    module = build_module(recipe, prepared).to(device=device, dtype=_TORCH[run_dtype(recipe)])
    state = (
        module.backbone.initial_state(recipe.batch.micro_batch, device)  # type: ignore[attr-defined]
        if recipe.recurrent
        else None
    )
    loss_sum, count, _ = module(found.inputs, found.targets, found.weights, state, found.resets)
    (loss_sum / count).backward()
    return float(loss_sum.detach()) / float(count)
