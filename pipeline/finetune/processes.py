"""Joining the processes that a launcher started: `accelerate launch`, torchrun, or none."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from pipeline.train.engine import init_distributed

_TIMEOUT_MINUTES = 30


def start_accelerator() -> Accelerator:
    """As the environment of the launcher has it; again gives the same. Collective.

    Without a GPU `accelerate` has to be told so, or every process would work for itself; and with
    DeepSpeed it has to be told of gloo.
    """
    if torch.accelerator.is_available():
        return Accelerator()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        init_distributed(_TIMEOUT_MINUTES)
        return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    return Accelerator(cpu=True)
