"""Triton kernels on a machine without a GPU: run in Triton's interpreter, and compared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from torch import Tensor


def run_checks(file: str) -> None:
    """Run the `check_*` functions of a test file in a process of their own: the interpreter has to
    be chosen before Triton is imported."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "python_functions=check_*", file],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def assert_near(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Every difference within `tolerance` of the largest value."""
    for name, values in wanted.items():
        assert got[name].shape == values.shape, name
        error = (got[name].double() - values.double()).abs().max()
        assert error <= tolerance * values.abs().max().clamp(min=1e-6), f"{name}: {error:.2g}"
