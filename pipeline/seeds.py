"""Where randomness comes from: a key for every purpose, equal on all ranks and in a resumed run."""

from __future__ import annotations

import hashlib

import torch


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from a seed and what it is for."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator_for(*parts: int | str) -> torch.Generator:
    """The same on every rank and after every resume: nothing but its key decides it."""
    return torch.Generator().manual_seed(derive_key(*parts) % 2**63)
