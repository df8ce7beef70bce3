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


def seconds(device: torch.device, run: Callable[[], object]) -> float:
    """Of `run`, with nothing of before in it and nothing left after it."""
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
