"""The pictures of one run: loss, bits per byte, learning rate, gradient norm, throughput."""

from __future__ import annotations

import numpy as np

from pipeline.report.document import Picture
from pipeline.report.figures import BITS, LOSS, SECONDS, STEPS, TOKENS, Axis, Curve, draw
from pipeline.report.load import RunData, column


def run_pictures(run: RunData, max_points: int) -> list[Picture]:
    """Every picture that the run's metrics can fill."""
    pictures = [_loss(run, max_points), _bits(run, max_points)]
    pictures += [
        _learning_rate(run, max_points),
        _gradient_norm(run, max_points),
        _noise(run, max_points),
        _throughput(run, max_points),
    ]
    return [picture for picture in pictures if picture is not None]


def _loss(run: RunData, max_points: int) -> Picture | None:
    tokens = "train/tokens"
    training, held_out = run.training, run.evaluations
    curves = [
        Curve("training", column(training, tokens), column(training, "train/loss"), "noisy"),
        Curve("validation", column(held_out, tokens), column(held_out, "eval/loss"), "points"),
    ]
    return draw("loss", "Loss while training", TOKENS, LOSS, curves, max_points)


def _bits(run: RunData, max_points: int) -> Picture | None:
    seconds = column(run.evaluations, "time/train_s")
    curves = [Curve("validation", seconds, column(run.evaluations, "eval/bits_per_byte"), "points")]
    unigram = run.unigram("validation")
    if unigram is not None and len(seconds):
        label = "byte frequencies alone (unigram)"
        curves.append(Curve(label, seconds[:1], np.array([unigram]), "level"))
    title = "Bits per byte on held-out text"
    return draw("bits_per_byte", title, SECONDS, BITS, curves, max_points)


def _learning_rate(run: RunData, max_points: int) -> Picture | None:
    steps = column(run.training, "step")
    rate = Curve("learning rate", steps, column(run.training, "train/learning_rate"))
    axis = Axis("learning rate (no unit)")
    return draw("learning_rate", "Learning rate", STEPS, axis, [rate], max_points)


def _gradient_norm(run: RunData, max_points: int) -> Picture | None:
    steps = column(run.training, "step")
    norm = Curve("gradient norm", steps, column(run.training, "train/grad_norm"), "noisy")
    axis = Axis("L2 norm (no unit)", log=True)
    return draw("grad_norm", "Gradient norm before clipping", STEPS, axis, [norm], max_points)


def _noise(run: RunData, max_points: int) -> Picture | None:
    key = "noise/scale_tokens"
    measured = [line for line in run.training if key in line]
    if not measured:
        return None
    batch = run.config["batch"]["global_batch"] * run.config["batch"]["window_tokens"]
    tokens = column(measured, "train/tokens")
    curves = [
        Curve("noise scale", tokens, column(measured, key)),
        Curve("batch of this run", tokens, np.full(len(tokens), float(batch)), "level"),
    ]
    axis = Axis("noise scale (tokens)", log=True)
    return draw("noise_scale", "Gradient noise scale", TOKENS, axis, curves, max_points)


def _throughput(run: RunData, max_points: int) -> Picture | None:
    speed = Curve(
        "all devices",
        column(run.training, "step"),
        column(run.training, "perf/tokens_per_sec"),
        "noisy",
    )
    axis = Axis("tokens per second", prefixes=True, zero=True)
    return draw("throughput", "Throughput", STEPS, axis, [speed], max_points)
