"""An exported model with its tokenizer: log-probabilities and one vector per text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from data_prep.errors import DataError
from data_prep.shards import Prepared
from data_prep.tokenizers import Tokenizer, load_tokenizer
from pipeline.evaluate.pooling import Framing, pooled, position_limit, streamed
from pipeline.export.folder import check_model_folder, check_vocabulary
from pipeline.export.register import register_models
from pipeline.export.scored.modeling_scored import ScoredForCausalLM
from pipeline.models.mlstm.modeling_mlstm import MLSTMForCausalLM
from pipeline.progress import Progress

_STREAMED_ROWS = 128  # texts that a recurrent model reads side by side


class LanguageModel:
    """A causal language model in eval mode; `position_limit` is None when it reads without end."""

    def __init__(self, model: Any, tokenizer: Tokenizer, device: torch.device) -> None:
        self.causal_lm = model.to(device).eval()
        # Under the scores of another head than softmax lies the architecture itself.
        self.model = model.model if isinstance(model, ScoredForCausalLM) else model
        self.tokenizer = tokenizer
        self.device = device
        self.has_probabilities = getattr(model.config, "has_probabilities", True)
        self.framing = Framing(self.model, tokenizer)
        self.recurrent = self.framing.recurrent
        self.position_limit = None if self.recurrent else position_limit(self.model.config)

    @classmethod
    def load(cls, folder: Path | str, device: str | torch.device | None = None) -> LanguageModel:
        """Load an export in fp32; `device` None takes a GPU when there is one.

        DataError when the folder is missing, is a checkpoint, is no export, or holds the tokenizer
        of another vocabulary.
        """
        model = load_causal_lm(folder)
        tokenizer = load_tokenizer(folder)
        check_tokenizer(folder, model, tokenizer.vocab_size)
        return cls(model, tokenizer, device_for(device))

    @torch.no_grad()
    def judge(
        self,
        ids: Tensor,
        targets: Tensor,
        state: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses (B, T) in nats, fp32, of `targets` after `ids`; how many other tokens each of
        them ranks behind, (B, T) int64; and the state to go on with.

        `state` and `resets` (B, T) are for recurrent models; see `pipeline.protocols.Backbone`.
        """
        if self.recurrent:
            hidden, state = self.model.hidden(ids, state, resets)
            logits = self.model.lm_head(hidden).float()
        else:
            logits = self.causal_lm(input_ids=ids, use_cache=False).logits.float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none"
        )
        own = logits.gather(-1, targets.unsqueeze(-1))
        ahead = ~(logits <= own)  # what is no number ranks ahead, so that it can hit nothing
        return losses.view_as(targets), ahead.sum(dim=-1), state

    @torch.no_grad()
    def features(self, texts: Sequence[str], batch_tokens: int = 8192) -> np.ndarray:
        """One vector per text, (n, d) float32, in the order of `texts`; see `pooling`.

        Texts of similar length are computed together; a Transformer takes `batch_tokens` tokens
        with padding at a time, a longer text alone. A Transformer reads a text up to its
        last position. DataError when a text is empty.
        """
        if "" in texts:
            raise DataError(f"text {list(texts).index('')} is empty and has no features; remove it")
        ids = self.framing.encode(texts, self.position_limit)
        # A recurrent model reads a few steps at a time: rows may have any length.
        limits = (math.inf, _STREAMED_ROWS) if self.recurrent else (batch_tokens, math.inf)
        vectors: list[np.ndarray] = [np.empty(0)] * len(ids)
        with Progress("features", len(ids), "text") as progress:
            for members in batches([len(row) for row in ids], *limits):
                rows = self.framing.rows([ids[i] for i in members]).to(self.device)
                found = streamed(self.model, rows) if self.recurrent else pooled(self.model, rows)
                for i, vector in zip(members, found.cpu().numpy(), strict=True):
                    vectors[i] = vector
                progress.update(len(members))
        return np.stack(vectors).astype(np.float32)


def batches(lengths: Sequence[int], most_tokens: float, most_rows: float) -> list[list[int]]:
    """Indices by length, longest first, so that a batch too large for the memory fails at once."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rows = len(batches[-1]) + 1 if batches else 0
        if not rows or rows > most_rows or rows * lengths[batches[-1][0]] > most_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def load_causal_lm(folder: Path | str) -> Any:
    """The model of an export, or of any folder whose architecture `transformers` has, in fp32.

    DataError when the folder is missing, is a checkpoint, holds no such model, or needs code that
    it brings along.
    """
    folder = Path(folder)
    check_model_folder(folder)
    register_models()
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
            local_files_only=True,
        )  # fmt: skip
    # What `transformers` raises at files that were altered is not specified.
    except Exception as error:
        reason = f"{' '.join(str(error).split()):.300}"
        hint = "weights must be there as safetensors, and code in a folder is never run"
        raise DataError(f"{folder} holds no model that can be loaded ({reason}): {hint}") from error


def check_tokenizer(folder: Path | str, model: Any, vocab_size: int) -> None:
    """DataError when a tokenizer of `vocab_size` ids cannot be the model's own."""
    known = model.get_input_embeddings().weight.shape[0]
    check_vocabulary(folder, known, vocab_size, exact=isinstance(model, MLSTMForCausalLM))


def prepared_for(model: LanguageModel, export: Path, data: str) -> Prepared:
    """The prepared text in folder `data`; DataError when an export reads another tokenizer."""
    prepared = Prepared.open(data)
    if model.tokenizer.fingerprint != prepared.tokenizer_fingerprint:
        raise DataError(
            f"{export} reads tokenizer {model.tokenizer.fingerprint[:12]}, {prepared.folder} holds "
            f"{prepared.tokenizer_fingerprint[:12]}: correct data.folder"
        )
    return prepared


def device_for(name: str | torch.device | None) -> torch.device:
    """The device named; without a name a GPU when there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
