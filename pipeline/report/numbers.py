"""Numbers as a report shows them. What is not known is a dash, never a zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DASH = "–"


def known(value: Any) -> bool:
    """True for a finite or infinite number; None, NaN and text are not known."""
    return isinstance(value, int | float) and value == value


def count(value: float | None) -> str:
    """`1,234,567`"""
    return f"{value:,.0f}" if known(value) else DASH


def decimal(value: float | None, digits: int = 3) -> str:
    """`2.310`"""
    return f"{value:,.{digits}f}" if known(value) else DASH


def percent(share: float | None) -> str:
    """A share of 0 to 1 as `71.2 %`."""
    return f"{100 * share:.1f} %" if share is not None and known(share) else DASH


def interval(bounds: Sequence[float] | None) -> str:
    """Two shares as `[68.0, 74.1]`, in percent."""
    return f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds else DASH


def with_interval(share: float | None, bounds: Sequence[float] | None) -> str:
    """`71.2 % [68.0, 74.1]`; without bounds the share alone."""
    return f"{percent(share)} {interval(bounds)}" if bounds else percent(share)


def flops(value: float | None) -> str:
    """`3.20e15`"""
    return f"{value:.2e}".replace("e+", "e") if known(value) else DASH


def general(value: Any) -> str:
    """Any scalar of a manifest or metrics line."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return DASH if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def seconds(value: float | None) -> str:
    """`5,400.0`"""
    return decimal(value, 1)
