"""Which model, and how many steps: what the time, the machine and the amount of text allow.

Training costs about 6 FLOPs per parameter and token. A model is worth its size when it sees about
20 tokens per parameter (Hoffmann et al. 2022), or when there is no more text to show it: text is
worth reading about four times (Muennighoff et al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.init.machine import Machine

Kind = Literal["transformer", "mlstm"]

MAX_EPOCHS = 4
_UTILISATION = 0.35  # share of the matrix speed that training reaches
_TOKENS_PER_PARAMETER = 20
_LEAST_TOKENS_PER_PARAMETER = 2  # with fewer, repeats included, a model mostly learns by heart
_BYTE_EMBEDDING = 64
_POSITIONS = 1024  # GPT-2's table, longer than any window here
_VOCABULARIES = ((5e7, 8192), (5e6, 4096), (5e5, 1024))  # from so many bytes of text on
# (width, layers, peak learning rate), small to large
_TRANSFORMERS = (
    (64, 2, 2e-3), (96, 2, 2e-3), (128, 3, 1.5e-3), (192, 4, 1e-3), (256, 6, 1e-3),
    (384, 6, 6e-4), (512, 8, 6e-4), (768, 12, 4e-4), (1024, 24, 3e-4),
)  # fmt: skip
_MLSTMS = (
    (128, 1, 2e-3), (256, 1, 2e-3), (512, 1, 1e-3), (1024, 1, 1e-3), (2048, 1, 5e-4),
    (4096, 1, 5e-4),
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A model and the length of its training."""

    kind: Kind
    width: int
    layers: int
    lr: float
    vocabulary: int
    window: int
    global_batch: int
    steps: int
    parameters: int
    epochs: float
    minutes: float  # what training is expected to take

    @property
    def heads(self) -> int:
        """Attention heads of a transformer, of 32 to 64 units each."""
        return max(2, self.width // 64)

    @property
    def duration(self) -> str:
        """The expected time of training in words; starting and saving come on top."""
        return "under a minute" if self.minutes < 1 else f"about {self.minutes:.0f} minutes"

    def describe(self) -> str:
        """One phrase for people."""
        return (
            f"{self.kind}, about {self.parameters:,} parameters, {self.steps:,} steps, "
            f"{self.epochs:.1f} passes over the text, {self.duration}"
        )


@dataclass(frozen=True)
class _Rung:
    """A model of the ladder, for a certain amount of text."""

    width: int
    layers: int
    lr: float
    vocabulary: int
    text_tokens: int
    window: int
    parameters: int  # those that are multiplied with
    looked_up: int  # those that are only looked up, and cost no time

    def tokens(self, budget: float) -> float:
        """Tokens that a budget of FLOPs, and the text, let it train on."""
        return min(budget / (6 * self.parameters), MAX_EPOCHS * self.text_tokens)

    def fits(self, budget: float) -> bool:
        """Whether it sees enough tokens: those it is worth, or all that the text has."""
        all_text = MAX_EPOCHS * self.text_tokens
        enough = min(_TOKENS_PER_PARAMETER * self.parameters, all_text)
        learns = all_text >= _LEAST_TOKENS_PER_PARAMETER * self.parameters
        return learns and self.tokens(budget) >= enough


def plan(text_bytes: int, minutes: float, machine: Machine, kind: Kind) -> Plan:
    """The largest model of the ladder that fits, else the smallest."""
    if kind == "transformer":
        ladder = [_transformer(*rung, text_bytes) for rung in _TRANSFORMERS]
    else:
        ladder = [_mlstm(*rung, text_bytes) for rung in _MLSTMS]
    budget = minutes * 60 * machine.flops_per_second * _UTILISATION
    model = next((rung for rung in reversed(ladder) if rung.fits(budget)), ladder[0])
    batch = _global_batch(model, model.tokens(budget), machine.gpu)
    steps = max(1, int(model.tokens(budget) / (batch * model.window)))
    trained = steps * batch * model.window
    return Plan(
        kind=kind,
        width=model.width,
        layers=model.layers,
        lr=model.lr,
        vocabulary=model.vocabulary,
        window=model.window,
        global_batch=batch,
        steps=steps,
        parameters=model.parameters + model.looked_up,
        epochs=trained / model.text_tokens,
        minutes=minutes * 6 * model.parameters * trained / budget,
    )


def _transformer(width: int, layers: int, lr: float, text_bytes: int) -> _Rung:
    # A vocabulary needs text to learn from, and a narrow model would be all embedding.
    by_text = next((ids for least, ids in _VOCABULARIES if text_bytes >= least), 384)
    vocabulary = min(by_text, 16 * width)
    # What a token stands for in European languages grows with the logarithm of the vocabulary.
    text_tokens = int(text_bytes / (1.3 + 0.5 * math.log2(vocabulary / 256)))
    window = _window(text_tokens)
    parameters = 12 * layers * width**2 + vocabulary * width  # embedding and output are tied
    positions = _POSITIONS * width
    return _Rung(width, layers, lr, vocabulary, text_tokens, window, parameters, positions)


def _mlstm(width: int, layers: int, lr: float, text_bytes: int) -> _Rung:
    recurrent = 5 * width * (width + _BYTE_EMBEDDING) + 4 * width
    parameters, embedding = recurrent + 256 * (width + 1), 256 * _BYTE_EMBEDDING
    return _Rung(width, layers, lr, 256, text_bytes, _window(text_bytes), parameters, embedding)


def _window(text_tokens: int) -> int:
    """Tokens per instance: 256, or less where held-out text would not fill a few windows."""
    return next((window for window in (256, 128, 64) if text_tokens >= 2000 * window), 32)


def _global_batch(model: _Rung, tokens: float, gpu: bool) -> int:
    """Instances per step: a power of two that leaves some hundred steps and fits the text."""
    batch = 64 if gpu else 16
    while batch > 2 and batch * model.window > min(tokens / 300, model.text_tokens / 4):
        batch //= 2
    return batch
