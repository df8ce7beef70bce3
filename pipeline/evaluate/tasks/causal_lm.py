"""A causal language model of any local folder with its tokenizer, as `transformers` reads both."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from data_prep.errors import DataError
from pipeline.evaluate.model import check_tokenizer, device_for, load_causal_lm
from pipeline.evaluate.pooling import position_limit
from pipeline.export.scored.modeling_scored import ScoredForCausalLM
from pipeline.models.mlstm.modeling_mlstm import MLSTMForCausalLM

_TOKENIZER_FILES = ("tokenizer.*", "vocab.*", "spiece.model")


class CausalLM:
    """The model in eval mode. Text is encoded as the folder's own tokenizer settings say, without
    the frame that documents have in training: so do other tools that judge by likelihood."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.unknown_id: int | None = tokenizer.unk_token_id
        self.device = device
        self.recurrent = isinstance(model, MLSTMForCausalLM)
        # Under the scores of another head than softmax lies the architecture itself.
        inner = model.model if isinstance(model, ScoredForCausalLM) else model
        self.position_limit = None if self.recurrent else position_limit(inner.config)
        self._parameters = inspect.signature(inner.forward).parameters

    @classmethod
    def load(cls, folder: Path | str, device: str | torch.device | None = None) -> CausalLM:
        """Load a folder in fp32; `device` None takes a GPU when there is one.

        DataError when it is missing, is a checkpoint, holds no model or no tokenizer, holds the
        tokenizer of another vocabulary, or its head gives no probabilities.
        """
        return cls.with_tokenizer(load_causal_lm(folder), folder, device_for(device))

    @classmethod
    def with_tokenizer(cls, model: Any, folder: Path | str, device: torch.device) -> CausalLM:
        """A model that was loaded before, with the tokenizer of its folder."""
        if not getattr(model.config, "has_probabilities", True):
            raise DataError(f"{folder}: its head gives no probabilities, which tasks are judged by")
        # Without files, `transformers` may invent a tokenizer of hardly any ids.
        if not any(any(Path(folder).glob(name)) for name in _TOKENIZER_FILES):
            raise DataError(f"{folder} holds no tokenizer ({', '.join(_TOKENIZER_FILES)})")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = f"{' '.join(str(error).split()):.300}"
            raise DataError(f"{folder} holds no tokenizer that can be loaded ({reason})") from None
        check_tokenizer(folder, model, 1 + max(tokenizer.get_vocab().values()))
        return cls(model, tokenizer, device)

    def accepts(self, name: str) -> bool:
        """Whether the architecture's forward has an argument of this name."""
        return name in self._parameters

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, with the special tokens that the tokenizer puts around one."""
        return self.tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
