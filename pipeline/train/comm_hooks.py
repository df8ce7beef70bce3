"""PyTorch's communication hooks by key: what DistributedDataParallel does with a full bucket.

PowerSGD (Vogels et al. 2019, arXiv 1905.13727) sends factors of each gradient and keeps the error
for the next step. Post-local SGD (Lin et al. 2018, arXiv 1808.07217) exchanges gradients for some
steps, then none: every rank trains weights of its own, which are averaged every few updates.
"""

# No `from __future__ import annotations`: torch looks at a hook's annotations and wants classes.
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import (
    default_hooks,
    post_localSGD_hook,
    powerSGD_hook,
)
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from pipeline.recipe.engine import EngineConfig

_REMEMBERED = ("error_dict", "p_memory_dict", "q_memory_dict")


def _bf16(state: Any, bucket: dist.GradBucket) -> Future[Tensor]:
    """torch refuses its hook by name without NCCL, though gloo too adds numbers in bf16."""
    return default_hooks.bf16_compress_hook(state, bucket)


def _in_order(state: powerSGD_hook.PowerSGDState, bucket: dist.GradBucket) -> Future[Tensor]:
    """PowerSGD goes on exchanging in callbacks. NCCL calls them in order; gloo does so on threads,
    where ranks could meet in different exchanges."""
    exchanged = powerSGD_hook.powerSGD_hook(state, bucket)
    if bucket.buffer().device.type == "cpu":
        exchanged.wait()
    return exchanged


class CommHook:
    """The exchange as torch does it, or in half precision; remembers nothing."""

    def __init__(self, section: EngineConfig) -> None:
        self._section = section

    def register(self, ddp: DistributedDataParallel) -> None:
        """Before the first step. Collective."""
        if self._section.comm_hook == "fp16":
            ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
        elif self._section.comm_hook == "bf16":
            ddp.register_comm_hook(None, _bf16)

    @property
    def local(self) -> bool:
        """Whether ranks have weights of their own from here on."""
        return False

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """What is left to exchange when the optimizer has moved the weights. Collective."""

    def numbers(self) -> dict[str, int]:
        """What this rank has counted."""
        return {}

    def load_numbers(self, numbers: dict[str, int]) -> None:
        """Restore what `numbers` gave."""

    def tensors(self) -> dict[str, Tensor]:
        """What this rank remembers, by key."""
        return {}

    def load_tensor(self, key: str, tensor: Tensor) -> None:
        """Restore one of what `tensors` gave."""


class PowerSGD(CommHook):
    """Factors of rank `powersgd_rank`, started warm, with feedback of the error."""

    def register(self, ddp: DistributedDataParallel) -> None:
        self._powersgd = powerSGD_hook.PowerSGDState(
            process_group=None,
            matrix_approximation_rank=self._section.powersgd_rank,
            start_powerSGD_iter=self._section.hook_after_steps,
            # A row or column of zeros, such as a token that no text holds, has no direction.
            orthogonalization_epsilon=1e-8,
        )
        ddp.register_comm_hook(self._powersgd, _in_order)

    def numbers(self) -> dict[str, int]:
        return {"iter": self._powersgd.iter}

    def load_numbers(self, numbers: dict[str, int]) -> None:
        self._powersgd.iter = numbers.get("iter", 0)

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}/{bucket}": tensor
            for name in _REMEMBERED
            for bucket, tensor in getattr(self._powersgd, name).items()
        }

    def load_tensor(self, key: str, tensor: Tensor) -> None:
        name, _, bucket = key.partition("/")
        getattr(self._powersgd, name)[int(bucket)] = tensor


class PostLocalSGD(CommHook):
    """No exchange of gradients once it has begun, an average of weights every `local_steps`."""

    def register(self, ddp: DistributedDataParallel) -> None:
        begins = self._section.hook_after_steps
        self._hook = post_localSGD_hook.PostLocalSGDState(
            None, dist.group.WORLD, begins, post_local_gradient_allreduce=False
        )
        self._averager = PeriodicModelAverager(self._section.local_steps, warmup_steps=begins)
        ddp.register_comm_hook(self._hook, post_localSGD_hook.post_localSGD_hook)

    @property
    def local(self) -> bool:
        return bool(self._hook.iter >= self._section.hook_after_steps)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._averager.average_parameters(optimizer.param_groups)

    def numbers(self) -> dict[str, int]:
        return {"iter": self._hook.iter, "averager_step": self._averager.step}

    def load_numbers(self, numbers: dict[str, int]) -> None:
        self._hook.iter = numbers.get("iter", 0)
        self._averager.step = numbers.get("averager_step", 0)


def build_hook(section: EngineConfig) -> CommHook:
    """The hook that `engine.comm_hook` names."""
    kinds = {"powersgd": PowerSGD, "post_local_sgd": PostLocalSGD}
    return kinds.get(section.comm_hook, CommHook)(section)
