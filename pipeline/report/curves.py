"""The pictures of one run: loss, bits per byte, learning rate, gradient norm, throughput."""

from __future__ import annotations

import numpy as np

from pipeline.report.document import Picture
from pipeline.report.figures import BITS, SECONDS, STEPS, TOKENS, Axis, Curve, draw
from pipeline.report.load import RunData, column


def run_pictures(run: RunData, max_points: int) -> list[Picture]:
    """Every picture that the run's metrics can fill."""
    pictures = [_loss(run, max_points), _bits(run, max_points)]
    pictures += [
        _against_steps(run, "learning_rate", "Learning rate", Axis("learning rate"), max_points),
        _against_steps(
            run, "grad_norm", "Gradient norm before clipping", Axis("L2 norm", log=True), max_points
        ),
        _throughput(run, max_points),
    ]
    return [picture for picture in pictures if picture is not None]


def _loss(run: RunData, max_points: int) -> Picture | None:
    training = Curve(
        "training", column(run.training, "train/tokens"), column(run.training, "train/loss"), "noisy"
    )
    held_out = Curve(
        "validation",
        column(run.evaluations, "train/tokens"),
        column(run.evaluations, "eval/loss"),
        "points",
    )
    loss = Axis("loss (nats per token)")
    return draw("loss", "Loss while training", TOKENS, loss, [training, held_out], max_points)


def _bits(run: RunData, max_points: int) -> Picture | None:
    seconds = column(run.evaluations, "time/train_s")
    curves = [
        Curve("validation", seconds, column(run.evaluations, "eval/bits_per_byte"), "points")
    ]
    unigram = run.unigram("validation")
    if unigram is not None and len(seconds):
        label = "byte frequencies alone (unigram)"
        curves.append(Curve(label, seconds[:1], np.array([unigram]), "level"))
    title = "Bits per byte on held-out text"
    return draw("bits_per_byte", title, SECONDS, BITS, curves, max_points)


def _against_steps(
    run: RunData, metric: str, title: str, axis: Axis, max_points: int
) -> Picture | None:
    values = column(run.training, f"train/{metric}")
    curve = Curve(metric.replace("_", " "), column(run.training, "step"), values)
    return draw(metric, title, STEPS, axis, [curve], max_points)


def _throughput(run: RunData, max_points: int) -> Picture | None:
    speed = Curve(
        "all devices",
        column(run.training, "step"),
        column(run.training, "perf/tokens_per_sec"),
        "noisy",
    )
    axis = Axis("tokens per second", prefixes=True)
    return draw("throughput", "Throughput", STEPS, axis, [speed], max_points)
