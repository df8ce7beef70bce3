"""The results of the ladder as a document: tables and pictures, written beside its studies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.ladder.rates import RULES, UNIFORM_BITS
from pipeline.report import numbers as show
from pipeline.report.document import Block, Code, Document, Picture, Section, Table
from pipeline.report.figures import BITS, Axis, Curve, draw

_BYTES = Axis("training bytes (k = 10³, M = 10⁶)", prefixes=True)
_LOG_BITS = Axis(BITS.label, log=True)
_RATE = Axis("peak rate", log=True)
_ALL_POINTS = 2000


def document(found: dict[str, Any]) -> Document:
    """Of what `study_all` found; parts that are not there yet are left out."""
    sections = []
    for model, rungs in found["ladder"].items():
        blocks = [_batches(rungs), _sentiment(rungs), _rates(model, rungs), _rules(model, rungs)]
        sections.append(Section(f"Batch ladder: {model}", _present(blocks)))
    sections.append(Section("Noise scale", _present([_noise(found["ladder"]), *_advice(found)])))
    if "warmup" in found:
        warmup = found["warmup"]
        blocks = [_sgd(warmup), _warmups(warmup), _warmup_curves(warmup)]
        sections.append(Section("Warm-up under SGD with momentum", _present(blocks)))
    if found["precision"]:
        sections.append(Section("Precision", [_precisions(found["precision"])]))
    return Document("Large batches by rule", sections)


def _present(blocks: list[Any]) -> list[Block]:
    return [block for block in blocks if block is not None]


def _bits(value: float | None) -> str:
    return "diverged" if value is not None and math.isinf(value) else show.decimal(value)


def _batches(rungs: dict[str, Any]) -> Table:
    header = ["batch", "bytes", "updates", "largest stable", "best", "by halving", *RULES]
    rows = [
        [f"x{factor}", show.count(rung["bytes_per_update"]), show.count(rung["updates"]),
         show.general(rung["largest_stable_rate"]),
         *(f"{_bits(end['bits'])} at {end['rate']:.3g}"
           for end in (rung["best"], rung["chosen"], *rung["rules"].values()))]
        for factor, rung in rungs["batches"].items()
    ]  # fmt: skip
    return Table(header, rows)


def _sentiment(rungs: dict[str, Any]) -> Table:
    header = ["end point", "rate", "validation", "test", "sentiment [95 %]", "most frequent class"]
    rows = []
    for factor, rung in rungs["batches"].items():
        ends = {"best": rung["best"]} | (rung["rules"] if int(factor) > 1 else {})
        for name, end in ends.items():
            accuracy = show.with_interval(end["sentiment"], end["sentiment_interval"])
            rows.append([
                f"x{factor} {name}", show.general(end["rate"]), _bits(end["bits"]),
                _bits(end["test_bits"]), accuracy, show.percent(end["majority"]),
            ])  # fmt: skip
    return Table(header, rows)


def _rates(model: str, rungs: dict[str, Any]) -> Picture | None:
    curves = []
    for factor, rung in rungs["batches"].items():
        rates, bits = np.array(rung["first_rung"], dtype=float).T
        known = np.where(bits > UNIFORM_BITS, np.nan, bits)  # they would flatten all others
        curves.append(Curve(f"x{factor}", rates, known, "points"))
    title = f"{model}: a quarter of the way, by rate"
    return draw(f"large_batch_rates_{model}", title, _RATE, _LOG_BITS, curves, _ALL_POINTS)


def _rules(model: str, rungs: dict[str, Any]) -> Picture | None:
    """What diverged would flatten all others."""
    curves = []
    for factor, rung in rungs["batches"].items():
        names: dict[float, list[str]] = {}  # rules may agree
        for name, end in {"best": rung["best"], **rung["rules"]}.items():
            if math.isfinite(end["bits"]):
                names.setdefault(end["rate"], []).append(name)
        ends = {end["rate"]: end["curve"] for end in (rung["best"], *rung["rules"].values())}
        for rate, told in names.items():
            label = f"x{factor}" if int(factor) == 1 else f"x{factor} {', '.join(told)}"
            curves.append(_against_bytes(label, ends[rate]))
    title = f"{model}: rules at equal bytes"
    return draw(f"large_batch_rules_{model}", title, _BYTES, _LOG_BITS, curves, _ALL_POINTS)


def _against_bytes(label: str, points: list[list[float]]) -> Curve:
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    return Curve(label, x, y)


def _noise(ladders: dict[str, Any]) -> Picture | None:
    curves, levels = [], {}
    for model, rungs in ladders.items():
        for factor, rung in rungs["batches"].items():
            levels[factor] = rung["bytes_per_update"]
            if rung.get("noise"):
                curves.append(_against_bytes(f"{model}, trained at x{factor}", rung["noise"]))
    lines = [
        Curve(f"x{f}: {b:,} bytes", np.zeros(1), np.array([b]), "level") for f, b in levels.items()
    ]
    axis = Axis("noise scale, bytes", log=True)
    title = "Gradient noise scale along the run"
    return draw("large_batch_noise", title, _BYTES, axis, [*curves, *lines], _ALL_POINTS)


def _advice(found: dict[str, Any]) -> list[Code]:
    return [
        Code(f"{model} x{factor}\n{rung['advice']}")
        for model, rungs in found["ladder"].items()
        for factor, rung in rungs["batches"].items()
        if "advice" in rung
    ]


def _sgd(warmup: dict[str, Any]) -> Table:
    first = {factor: dict(found) for factor, found in warmup["first_rung"].items()}
    rates = sorted({rate for found in first.values() for rate in found})
    rows = [
        [f"x{factor}", *(_bits(found.get(rate)) for rate in rates),
         show.general(warmup["rates"][factor]), show.general(warmup["largest_stable_rate"][factor])]
        for factor, found in first.items()
    ]  # fmt: skip
    return Table(["batch", *map(show.general, rates), "best rate", "largest stable"], rows)


def _warmups(warmup: dict[str, Any]) -> Table:
    rows = []
    for name, arm in warmup["arms"].items():
        mean = show.DASH if arm["diverged"] else _bits(arm["mean"])
        if not arm["diverged"] and arm["deviation"] is not None:
            mean += f" ± {_bits(arm['deviation'])}"
        rows.append([name, show.general(arm["peak_rate"]), *map(_bits, arm["bits"]), mean])
    seeds = [f"seed {number}" for number, _ in enumerate(rows[0][2:-1], 1)]
    return Table(["arm", "peak rate", *seeds, "mean ± deviation"], rows)


def _warmup_curves(warmup: dict[str, Any]) -> Picture | None:
    curves = []
    for name, arm in warmup["arms"].items():
        if len(arm["bits"]) - arm["diverged"] > 1:
            runs = [
                c for c, bits in zip(arm["curves"], arm["bits"], strict=True) if bits < math.inf
            ]
            x, y = np.mean(np.array(runs, dtype=float), axis=0).T
            curves.append(Curve(name, x, y))
    title = "SGD with momentum: ways to begin"
    return draw("large_batch_warmup", title, _BYTES, _LOG_BITS, curves, _ALL_POINTS)


def _precisions(found: dict[str, Any]) -> Table:
    header = ["model", "fp32, bits per byte", "bf16", "gap", "speed, times fp32's",
              "memory grown, times fp32's"]  # fmt: skip
    rows = []
    for model, dtypes in found.items():
        fp32, bf16 = dtypes["fp32"], dtypes["bf16"]
        gaps = [b - a for a, b in zip(fp32["bits"], bf16["bits"], strict=True)]
        rows.append([
            model, *(", ".join(show.decimal(b, 4) for b in d["bits"]) for d in (fp32, bf16)),
            ", ".join(f"{gap:+.4f}" for gap in gaps),
            show.decimal(bf16["bytes_per_s"] / fp32["bytes_per_s"], 2),
            show.decimal(bf16["grown_bytes"] / fp32["grown_bytes"], 2),
        ])  # fmt: skip
    return Table(header, rows)
