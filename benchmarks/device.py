"""Timing on a processor or a GPU, for the benchmarks that run on either."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from benchmarks.harness import options


def device_options(description: str) -> argparse.ArgumentParser:
    """What every benchmark takes, and the device."""
    parser = options(description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def device_of(arguments: argparse.Namespace) -> torch.device:
    """The device asked for; a GPU is named."""
    device = torch.device(arguments.device)
    if device.type == "cuda":
        print(torch.cuda.get_device_name(device))
    return device


def seconds(device: torch.device, run: Callable[[], object], in_a_row: int = 1) -> float:
    """Of `run`, with nothing of before in it and nothing left after it; the mean of `in_a_row`."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(in_a_row):
        run()
    _wait(device)
    return (time.perf_counter() - began) / in_a_row


def steady_seconds(device: torch.device, run: Callable[[], object]) -> float:
    """The same where runs follow one another, so that a GPU is not seen waiting for the first
    launch of each: in a row as many as take 20 ms, ten at most."""
    once = seconds(device, run)
    if device.type != "cuda":
        return once
    return seconds(device, run, min(10, max(1, round(0.02 / once))))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
