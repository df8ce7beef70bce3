"""Tokenizers: text to ids and back, with the framing that tells documents apart.

A tokenizer lives in a folder that `transformers.AutoTokenizer` loads, plus `tokenizer_card.json`
with what transformers does not know: the framing, and the fingerprint that ties shards and
checkpoints to this very tokenizer.
"""

from .base import CARD, Tokenizer, dtype_for
from .make import load_tokenizer, train_tokenizer, vocabulary_limit
from .report import round_trip_report

__all__ = [
    "CARD", "Tokenizer", "dtype_for", "load_tokenizer", "round_trip_report", "train_tokenizer",
    "vocabulary_limit",
]  # fmt: skip
