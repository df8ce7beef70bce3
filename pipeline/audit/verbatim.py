"""Training text that the model says by heart, as in Carlini et al. 2023 (ICLR, section 3).

The first tokens of a document are given, and the likeliest continuation is held against the
document's own. The same with documents that were never trained on tells how much of that is luck
or phrases that everyone writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from data_prep.errors import RecipeError
from pipeline.audit.documents import Document
from pipeline.audit.limits import Limits
from pipeline.evaluate.model import LanguageModel

_ROWS = 32


def verbatim(model: LanguageModel, documents: Sequence[Document], limits: Limits) -> dict[str, Any]:
    """The share of documents whose next tokens are written exactly, with its 95 % interval, and
    how many tokens were right before the first wrong one.

    Documents shorter than prompt and continuation are left out. RecipeError when both together
    exceed the model's positions.
    """
    prompt, wanted = limits.prompt_tokens, limits.continuation_tokens
    frame = len(model.tokenizer.encode_prompt(""))
    if model.position_limit is not None and frame + prompt + wanted > model.position_limit:
        raise RecipeError(
            f"--prompt-tokens {prompt} and --continuation-tokens {wanted} with {frame} of the "
            f"frame exceed the model's {model.position_limit} positions: ask for fewer"
        )
    rows = [model.tokenizer.encode_prompt(document.text) for document in documents]
    rows = [row for row in rows if len(row) >= frame + prompt + wanted]
    if not rows:
        return {"documents": 0}
    ids = np.stack([row[: frame + prompt + wanted] for row in rows]).astype(np.int64)
    found = continuations(model, ids[:, : frame + prompt], wanted)
    right = np.cumprod(found == ids[:, frame + prompt :], axis=1).sum(axis=1)
    exact = binomtest(int((right == wanted).sum()), len(rows))
    interval = exact.proportion_ci(0.95)  # Clopper-Pearson: none of a hundred is not none at all
    return {
        "documents": len(rows),
        "share": float(exact.statistic),
        "interval": [float(interval.low), float(interval.high)],
        "mean_right_tokens": float(right.mean()),
        "most_right_tokens": int(right.max()),
    }


@torch.no_grad()
def continuations(model: LanguageModel, prompts: np.ndarray, tokens: int) -> np.ndarray:
    """(n, tokens) likeliest next ids after prompts (n, k). Where a document ends earlier, padding
    or -1 follows."""
    found = np.full((len(prompts), tokens), -1, np.int64)
    for at in range(0, len(prompts), _ROWS):
        ids = torch.from_numpy(prompts[at : at + _ROWS]).to(model.device)
        out = model.causal_lm.generate(
            ids,
            attention_mask=None if model.recurrent else torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
        )
        written = out[:, ids.shape[1] :].cpu().numpy()
        found[at : at + len(ids), : written.shape[1]] = written
    return found
