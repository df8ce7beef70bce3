"""Curves as PNG pictures: thinned, smoothed, with title, axes and units.

Drawn with matplotlib's own figure object, so no display and no global state is involved.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, LogFormatter

from pipeline.report.document import Picture

COLOURS = ("#0b6fa4", "#d1495b", "#3a7d44", "#e09f3e", "#6f4c9b", "#5c6770", "#00a5a8", "#8c510a")
_SMOOTHING_SHARE = 1 / 50  # of all points, averaged in the strong line over a noisy one


@dataclass(frozen=True)
class Axis:
    """A label with its unit. `prefixes` writes 1.5 M for 1,500,000; `zero` shows the origin."""

    label: str
    prefixes: bool = False
    log: bool = False
    zero: bool = False


STEPS = Axis("training time (optimizer steps)")
TOKENS = Axis("training tokens (k = 10³, M = 10⁶, G = 10⁹)", prefixes=True)
SECONDS = Axis("training time (seconds)")
MONEY = Axis("training cost (money, at the price of a device hour)")
FLOPS = Axis("counted FLOPs (G = 10⁹, T = 10¹², P = 10¹⁵)", prefixes=True)
BITS = Axis("bits per byte")
LOSS = Axis("loss (nats per token)")


@dataclass(frozen=True)
class Curve:
    """Points to connect. `noisy` adds a running mean; `level` is one y over all x."""

    label: str
    x: np.ndarray
    y: np.ndarray
    kind: Literal["line", "points", "noisy", "level"] = "line"
    spread: np.ndarray | None = None  # half-width of a band around y


def draw(
    name: str, title: str, x: Axis, y: Axis, curves: Sequence[Curve], max_points: int
) -> Picture | None:
    """The picture of all curves that have a finite point; None when none has."""
    figure = Figure(figsize=(6.4, 3.9), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    shown = [curve for curve in map(_finite, curves) if len(curve.y)]
    if not any(curve.kind != "level" for curve in shown):
        return None
    for number, curve in enumerate(shown):
        _add(axes, curve, COLOURS[number % len(COLOURS)], max_points)
    axes.set_title(title, fontsize=12, fontweight="bold", loc="left")
    _label(axes, x, y)
    if len(shown) > 1 or shown[0].kind == "noisy":
        axes.legend(fontsize=9, frameon=False)
    return as_picture(figure, name, title)


def as_picture(figure: Figure, name: str, title: str) -> Picture:
    """The figure as PNG, without what changes from machine to machine.

    ValueError where it lacks a title or one of its axes a label.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return Picture(name, title, _axes_in_words(figure), buffer.getvalue())


def _axes_in_words(figure: Figure) -> str:
    """`loss (nats per token) against training tokens`; of a colour bar its label alone."""
    titles = [axes.get_title(place) for axes in figure.axes for place in ("left", "center")]
    if not any([*titles, figure.get_suptitle()]):
        raise ValueError("a picture without a title")
    labels = []
    for axes in figure.axes:
        if axes.axison:  # a colour bar has a scale in one direction only
            shown = [(axes.get_ylabel(), axes.get_yticks()), (axes.get_xlabel(), axes.get_xticks())]
            labels.append(" against ".join(label for label, ticks in shown if len(ticks)))
            if not all(label for label, ticks in shown if len(ticks)):
                raise ValueError("a picture with an axis that has no label")
    return ", ".join(labels)


def thin(x: np.ndarray, y: np.ndarray, max_points: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `max_points` points: the lowest and the highest of each stretch, so spikes stay."""
    if len(y) <= max_points:
        return x, y
    kept: set[int] = set()
    for stretch in np.array_split(np.arange(len(y)), max_points // 2):
        kept |= {int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])}
    chosen = sorted(kept)
    return x[chosen], y[chosen]


def running_mean(y: np.ndarray, width: int) -> np.ndarray:
    """Mean of the last `width` values at each point, of fewer at the beginning."""
    total = np.concatenate([[0.0], np.cumsum(y)])
    ends = np.arange(1, len(y) + 1)
    starts = np.maximum(0, ends - width)
    return (total[ends] - total[starts]) / (ends - starts)


def _finite(curve: Curve) -> Curve:
    good = np.isfinite(curve.x) & np.isfinite(curve.y)
    spread = None if curve.spread is None else curve.spread[good]
    return Curve(curve.label, curve.x[good], curve.y[good], curve.kind, spread)


def _add(axes: Axes, curve: Curve, colour: str, max_points: int) -> None:
    if curve.kind == "level":
        axes.axhline(float(curve.y[0]), color="#777777", linestyle="--", label=curve.label)
        return
    x, y = thin(curve.x, curve.y, max_points)
    if curve.kind == "noisy":
        width = max(1, round(len(curve.y) * _SMOOTHING_SHARE))
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
        x, y = thin(curve.x, running_mean(curve.y, width), max_points)
        label = f"{curve.label} (mean of {width} points)" if width > 1 else curve.label
        axes.plot(x, y, color=colour, linewidth=1.5, label=label)
        return
    # A single point, or few of them, would not be seen as a line.
    marker = "o" if curve.kind == "points" and len(y) <= 40 or len(y) == 1 else ""
    axes.plot(x, y, color=colour, linewidth=1.5, marker=marker, markersize=4, label=curve.label)
    if curve.spread is not None:
        low, high = curve.y - curve.spread, curve.y + curve.spread
        axes.fill_between(curve.x, low, high, color=colour, alpha=0.15, linewidth=0)


def _label(axes: Axes, x: Axis, y: Axis) -> None:
    axes.set_xlabel(x.label)
    axes.set_ylabel(y.label)
    # Beyond so many decades ticks between them have no numbers, which are wide on the x axis.
    sides = ((x, axes.xaxis, axes.set_xscale, 1), (y, axes.yaxis, axes.set_yscale, 2))
    for described, axis, set_scale, decades in sides:
        if described.log:
            set_scale("log")
            axis.set_minor_formatter(_PlainLog(minor_thresholds=(decades, 0.5)))
        axis.set_major_formatter(_formatter(described))
    if y.zero:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


class _PlainLog(LogFormatter):
    """Chooses the same ticks to label, but writes 0.4 instead of 4e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:,.6g}" if super().__call__(x, pos) else ""


def _formatter(axis: Axis) -> Formatter:
    if axis.prefixes:
        return EngFormatter()
    return FuncFormatter(lambda value, _: f"{value:,.6g}")
