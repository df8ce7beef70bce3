"""From nats per token to units that can be compared across tokenizers."""

from __future__ import annotations

import math
from typing import Protocol


class Sized(Protocol):
    """Text with its sizes, such as a split; read-only, so that a tuple may have them too."""

    @property
    def tokens(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def characters(self) -> int: ...


def loss_units(nats_per_token: float, text: Sized) -> dict[str, float]:
    """Mean loss per token as bits per byte and character and as perplexities.

    Bytes and characters are those of the text without the framing of documents, so what a
    tokenizer adds around a document counts against it.
    """
    nats_per_byte = nats_per_token * text.tokens / text.bytes
    nats_per_character = nats_per_token * text.tokens / text.characters
    return {
        "nats_per_token": nats_per_token,
        "bits_per_byte": nats_per_byte / math.log(2),
        "bits_per_character": nats_per_character / math.log(2),
        "ppl_per_token": math.exp(min(nats_per_token, 700)),
        "ppl_per_byte": math.exp(min(nats_per_byte, 700)),
    }
