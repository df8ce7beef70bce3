"""Texts that the model writes when given their beginnings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_prep.errors import RecipeError
from pipeline.evaluate.model import LanguageModel
from pipeline.progress import Progress


@torch.no_grad()
def samples(
    model: LanguageModel,
    prompts: Sequence[str],
    tokens: int,
    temperature: float,
    seed: int,
    clamp: dict[int, float] | None = None,
) -> list[dict[str, Any]]:
    """For each prompt its continuation, how many tokens that is, and why it ended there.

    Sampled from the whole distribution at `temperature`. `ended` is `end of document`, `length`
    (`tokens` were written) or `positions` (the Transformer's last position was reached). The same
    seed gives the same texts. `clamp` holds units of an mLSTM's last layer at a value. RecipeError
    when a prompt leaves no position to write at, or there is no such unit.
    """
    _check_clamp(model, clamp)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        written = []
        with Progress("samples", len(prompts), "text") as progress:
            for prompt in prompts:
                written.append(_continue(model, prompt, tokens, temperature, clamp))
                progress.update()
        return written


def print_samples(
    folder: Path,
    prompts: Sequence[str],
    tokens: int,
    temperature: float,
    seed: int,
    clamp: dict[int, float],
) -> None:
    """Print what the export in `folder` writes after each prompt. RecipeError when a number makes
    no sense; DataError when there is no export."""
    if tokens < 1 or not 0 < temperature < math.inf:
        found = f"--tokens {tokens}, --temperature {temperature}"
        raise RecipeError(f"{found}: both must be above 0")
    model = LanguageModel.load(folder)
    for written in samples(model, prompts, tokens, temperature, seed, clamp):
        print(f"{written['prompt']}{written['text']}\n[{written['ended']}]\n")


def _check_clamp(model: LanguageModel, clamp: dict[int, float] | None) -> None:
    if not clamp:
        return
    if not model.recurrent:
        raise RecipeError("only an mLSTM has units to hold at a value; leave the clamp away")
    units = model.model.config.hidden_size
    if missing := [unit for unit in clamp if not 0 <= unit < units]:
        raise RecipeError(f"no unit {missing[0]}: the model has units 0 to {units - 1}")


def _continue(
    model: LanguageModel,
    prompt: str,
    tokens: int,
    temperature: float,
    clamp: dict[int, float] | None,
) -> dict[str, Any]:
    ids = torch.from_numpy(model.tokenizer.encode_prompt(prompt).astype("int64"))
    ids = ids.unsqueeze(0).to(model.device)
    room = tokens
    if model.position_limit is not None:
        room = min(tokens, model.position_limit - ids.shape[1])
    if room < 1 or not ids.shape[1]:
        raise RecipeError(
            f"eval.prompts: {prompt!r:.60} is {ids.shape[1]} tokens, the model has "
            f"{model.position_limit} positions: use a prompt that is neither empty nor that long"
        )
    out = model.causal_lm.generate(
        ids,
        attention_mask=None if model.recurrent else torch.ones_like(ids),
        max_new_tokens=room,
        do_sample=True,
        temperature=temperature,
        top_k=0,  # the library's default cuts the distribution off at 50 ids
        top_p=1.0,
        **({"clamp": clamp} if clamp else {}),
    )
    written = out[0, ids.shape[1] :].cpu().numpy()
    if len(written) == room and written[-1] != model.model.generation_config.eos_token_id:
        ended = "length" if room == tokens else "positions"
    else:
        ended = "end of document"
    return {
        "prompt": prompt,
        "text": model.tokenizer.decode(written),
        "tokens": len(written),
        "ended": ended,
    }
