"""The last word of a passage, as in LAMBADA (Paperno et al. 2016): hit rate and perplexity.

A passage counts as hit when the likeliest token is right at every token of its last word, given the
tokens before it. What follows the word is not judged.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from data_prep.errors import DataError
from data_prep.recipe.data import CleanConfig
from pipeline.evaluate.accuracy import accuracy_interval, outcomes, word_perplexity
from pipeline.evaluate.labelled import chosen, read_labelled
from pipeline.evaluate.model import LanguageModel, batches
from pipeline.progress import Progress
from pipeline.recipe.evaluation import LastWordConfig

_BATCH_TOKENS = 8192
_RESAMPLES = 1000


class _Passage(NamedTuple):
    ids: np.ndarray  # context and last word, at most as many as the model sees
    word_tokens: int  # how many at the end are the word's


def last_word(
    model: LanguageModel, section: LastWordConfig, cleaning: CleanConfig, seed: int
) -> dict[str, Any]:
    """`accuracy` of the last words of the passages with its `interval`, and `ppl_per_word`.

    `cut` says how many passages were longer than the model can see and lost their beginning.
    DataError when the file is not what the section says, or a text has fewer than two words.
    """
    texts = read_labelled(section.path, section.text_field, section.text_field, cleaning)
    texts = chosen(texts, section.max_texts, seed)
    if not texts:
        raise DataError(f"{section.path} holds no texts: give another file")
    passages = [_passage(model, text.text, text.place) for text in texts]
    limit = model.position_limit
    # The last token is only predicted, so one more than the positions fits.
    kept = [p if limit is None else p._replace(ids=p.ids[-(limit + 1) :]) for p in passages]
    if longest := max((p.word_tokens for p in kept if p.word_tokens >= len(p.ids)), default=0):
        raise DataError(f"{section.path}: a word of {longest} tokens; the model sees {limit}")
    correct, nats, known = _judge(model, kept)
    judged = outcomes(correct, [text.text for text in texts])
    return (
        judged
        | {
            "texts": len(texts),
            "cut": sum(len(a.ids) > len(b.ids) for a, b in zip(passages, kept, strict=True)),
            "unknown": int(np.sum(~known)),
            "ppl_per_word": word_perplexity(nats, known),
        }
        | accuracy_interval(correct, _RESAMPLES, seed)
    )


def _passage(model: LanguageModel, text: str, place: str) -> _Passage:
    context, space, word = text.rstrip().rpartition(" ")
    if not context.strip() or not space:
        raise DataError(f"{place}: {word!r:.40} is one word: a context and a last word are needed")
    encode = model.tokenizer.encode_prompt
    ids = encode(text.rstrip())
    word_tokens = len(ids) - len(encode(context))
    if word_tokens < 1:
        raise DataError(f"{place}: {word!r:.40} is no token of this tokenizer: leave it out")
    return _Passage(ids, word_tokens)


def _judge(model: LanguageModel, passages: list[_Passage]) -> tuple[np.ndarray, ...]:
    """Of each passage: whether its last word was hit, the word's nats, and whether the vocabulary
    has it. What stands for unknown words is never a hit: nobody said the word."""
    unknown = model.tokenizer.unknown_id
    correct, known = np.zeros(len(passages), bool), np.zeros(len(passages), bool)
    nats = np.zeros(len(passages))
    with Progress("last words", len(passages), "text") as progress:
        for members in batches([len(p.ids) for p in passages], _BATCH_TOKENS, math.inf):
            longest = max(len(passages[i].ids) for i in members)
            ids = torch.zeros(len(members), longest, dtype=torch.int64)
            for row, i in enumerate(members):  # padded on the right, where no model looks
                ids[row, : len(passages[i].ids)] = torch.from_numpy(passages[i].ids.astype(int))
            ids = ids.to(model.device)
            losses, ranks, _ = model.judge(ids[:, :-1], ids[:, 1:].contiguous())
            for row, i in enumerate(members):
                end = len(passages[i].ids) - 1
                word = slice(end - passages[i].word_tokens, end)
                known[i] = unknown is None or unknown not in passages[i].ids[word.start + 1 :]
                correct[i] = known[i] and not ranks[row, word].any()
                nats[i] = float(losses[row, word].double().sum())
            progress.update(len(members))
    return correct, nats, known
