"""What all phases of a run have in common: they end at shares of its steps."""

from __future__ import annotations

from collections.abc import Sequence


def check_ends(ends: Sequence[float]) -> None:
    """ValueError unless they rise and the last is the end of the run."""
    if list(ends) != sorted(set(ends)) or ends[-1] != 1:
        raise ValueError(
            f"phases end at {list(ends)}: expected rising shares of the run, the last of them 1"
        )
