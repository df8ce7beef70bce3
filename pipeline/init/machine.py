"""How fast this machine multiplies matrices, and whether it has an NVIDIA GPU."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass

import numpy as np

_SIDE = 768  # large enough to be bound by arithmetic, small enough to be over soon
_PROBE_SECONDS = 0.5
# A GPU cannot be measured without loading a framework; this is what a modest one reaches in fp32.
_ASSUMED_GPU_FLOPS = 1e13


@dataclass(frozen=True)
class Machine:
    """What training may count on."""

    flops_per_second: float
    gpu: bool
    cores: int

    def describe(self) -> str:
        """One phrase for people."""
        speed = f"{self.flops_per_second / 1e9:,.0f} GFLOP/s"
        if self.gpu:
            return f"an NVIDIA GPU, taken to reach {speed} (not measured)"
        return f"no NVIDIA GPU; {self.cores} processor cores, measured {speed}"


def measure() -> Machine:
    """Probe for about half a second."""
    gpu = shutil.which("nvidia-smi") is not None
    speed = _ASSUMED_GPU_FLOPS if gpu else _matrix_speed()
    return Machine(speed, gpu, os.cpu_count() or 1)


def _matrix_speed() -> float:
    """FLOP/s of products of fp32 matrices, the best of all that fit into the probe."""
    left = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), dtype=np.float32)
    product = left @ left  # the first call also starts the library's threads
    best, end = float("inf"), time.perf_counter() + _PROBE_SECONDS
    while best == float("inf") or time.perf_counter() < end:
        started = time.perf_counter()
        np.matmul(left, left, out=product)
        best = min(best, time.perf_counter() - started)
    return 2 * _SIDE**3 / best
