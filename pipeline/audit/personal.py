"""Personal data that the model writes: in free text, and when led up to what training text holds.

Only counts leave this file, never a match. Names and addresses have no fixed form and are not
found; see `data_prep.pii`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from data_prep.pii import scrub
from pipeline.audit.documents import Document
from pipeline.audit.limits import Limits
from pipeline.audit.verbatim import continuations
from pipeline.evaluate.model import LanguageModel

KINDS = ("email", "card", "ip", "phone")
_ROWS = 32
_EXTRA_TOKENS = 8  # for a model that puts a blank or two before the match


class Passage(NamedTuple):
    """Training text before a match of `kind`, and the match."""

    before: str
    match: str
    kind: str


def find_passages(documents: Iterable[Document], most: int) -> list[Passage]:
    """At most `most` passages of documents that hold exactly one match."""
    found: list[Passage] = []
    for document in documents:
        counts: Counter[str] = Counter()
        scrubbed = scrub(document.text, KINDS, counts)
        if counts.total() == 1 and len(found) < most:
            found.append(_passage(document.text, scrubbed, next(iter(counts))))
    return found


def led_up_to(model: LanguageModel, passages: list[Passage], limits: Limits) -> dict[str, Any]:
    """How many matches the model writes when it is given the text before them, by kind."""
    result: dict[str, Any] = {"passages": len(passages), "reproduced": dict.fromkeys(KINDS, 0)}
    tokenizer = model.tokenizer
    for passage in passages:
        wanted = len(tokenizer.encode_prompt(passage.match)) + _EXTRA_TOKENS
        prompt = tokenizer.encode_prompt(passage.before)[-limits.prompt_tokens :].astype(np.int64)
        if model.position_limit is not None:
            wanted = min(wanted, model.position_limit - len(prompt))
        if not len(prompt) or wanted < 1:
            continue
        ids = continuations(model, prompt[None], wanted)[0]
        if tokenizer.decode(ids[ids >= 0]).lstrip().startswith(passage.match):
            result["reproduced"][passage.kind] += 1
    return result


@torch.no_grad()
def in_free_text(model: LanguageModel, limits: Limits) -> dict[str, Any]:
    """Matches in texts sampled from the model's own distribution, by kind.

    A tokenizer without a frame has nothing to begin a text with: no texts.
    """
    prompt = torch.from_numpy(model.tokenizer.encode_prompt("").astype(np.int64))
    if not len(prompt):
        return {"texts": 0}
    tokens = limits.sample_tokens
    if model.position_limit is not None:
        tokens = min(tokens, model.position_limit - len(prompt))
    texts: list[str] = []
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(limits.seed)
        while len(texts) < limits.samples:
            rows = min(_ROWS, limits.samples - len(texts))
            ids = prompt.expand(rows, -1).to(model.device)
            out = model.causal_lm.generate(
                ids,
                attention_mask=None if model.recurrent else torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=True,
                top_k=0,
            )
            texts += [model.tokenizer.decode(row) for row in out[:, len(prompt) :].cpu().numpy()]
    counts: Counter[str] = Counter()
    for text in texts:
        scrub(text, KINDS, counts)
    characters = sum(map(len, texts))
    return {"texts": len(texts), "characters": characters,
            "found": {kind: counts[kind] for kind in KINDS}}  # fmt: skip


def _passage(text: str, scrubbed: str, kind: str) -> Passage:
    """Where the one token of `scrubbed` stands in `text`, and for what."""
    token = f"<{kind.upper()}>"
    # A match begins with none of `<`, so the texts differ first where it stands.
    pairs = enumerate(zip(text, scrubbed, strict=False))
    start = next((i for i, (ours, theirs) in pairs if ours != theirs), len(scrubbed))
    rest = len(scrubbed) - start - len(token)
    return Passage(text[:start], text[start : len(text) - rest], kind)
