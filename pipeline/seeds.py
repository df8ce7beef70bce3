"""Where randomness comes from: a key for every purpose, equal on all ranks and in a resumed run."""

from __future__ import annotations

import hashlib


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from a seed and what it is for."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
