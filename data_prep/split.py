"""Which split a document belongs to: a function of its text and the salt, of nothing else.

Equal texts therefore never straddle splits, and neither renaming, reordering nor adding files
moves a document from one split to another.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from .recipe.data import SplitConfig

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


def split_of(text: str, config: SplitConfig) -> SplitName:
    """The split of a cleaned text."""
    digest = hashlib.blake2b(f"{config.salt}\0{text}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    if share < config.validation:
        return "validation"
    return "test" if share < config.validation + config.test else "train"
