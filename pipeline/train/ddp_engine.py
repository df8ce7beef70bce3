"""DistributedDataParallel behind the `Engine` protocol: the whole model on every device.

It runs what DeepSpeed's engine cannot: PyTorch's communication hooks, methods that go through a
batch twice, and, as ZeRO 0 does, optimizers that look at whole matrices.

bf16 means weights and gradients in bf16 and fp32 masters in the optimizer, as under DeepSpeed,
rather than autocast: heads and cells choose themselves which sums and products are made in fp32,
and autocast would overrule their products.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data_prep.errors import DataError, RecipeError
from pipeline.clock import StepResult
from pipeline.optim.build import set_rate
from pipeline.ranks import agree, barrier, from_rank0
from pipeline.recipe.engine import EngineConfig
from pipeline.train.comm_hooks import build_hook


class DDPEngine:
    """Wraps a module and its optimizer; see `pipeline.protocols.Engine`.

    `dtype` is fp32 or bf16; `clip` the gradient norm to clip to, 0 for none.
    """

    loss_scale = 1.0

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        section: EngineConfig,
        dtype: str,
        clip: float,
    ) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = _own_device()
        self.module = module.to(self.device)
        self._optimizer, self._clip = optimizer, clip if clip > 0 else float("inf")
        self._masters = {p: p for p in module.parameters()}
        if dtype == "bf16":
            self._masters = {p: nn.Parameter(p.detach().clone()) for p in self._masters}
            for group in optimizer.param_groups:
                group["params"] = [self._masters[p] for p in group["params"]]
            module.bfloat16()
        self._trained = [p for p in module.parameters() if p.requires_grad]
        self._hook = build_hook(section)
        self._ddp = _wrapped(module, section)
        self._hook.register(self._ddp)
        self._norm: float | None = None
        self._can_be_saved = False
        self.lr = 0.0

    # One step -----------------------------------------------------------------------------

    def forward(self, *inputs: Any) -> Any:
        return self._ddp(*inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate; outside `no_sync`, which `last` says, gradients are reduced over ranks."""
        assert last is self._ddp.require_backward_grad_sync, "forward was told otherwise by no_sync"
        # DDP averages over ranks; the loss is already a share of the global sum.
        (loss * self.world_size).backward()

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        return self._ddp.no_sync()

    def step(self) -> StepResult:
        masters = [self._masters[p] for p in self._trained]
        for parameter, master in zip(self._trained, masters, strict=True):
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        norm = nn.utils.clip_grad_norm_(masters, self._clip)
        self._norm = float(norm)
        if not self._agreed(torch.isfinite(norm)):
            self.discard()
            return StepResult.OVERFLOW
        self._optimizer.step()
        if not self._can_be_saved:
            self._check_state()
        self._hook.after_step(self._optimizer)
        for parameter, master in zip(self._trained, masters, strict=True):
            if master is not parameter:
                parameter.data.copy_(master)
        self.discard()
        return StepResult.APPLIED

    def _agreed(self, finite: Tensor) -> bool:
        """Ranks with equal gradients see the same; others must ask each other. Collective."""
        if self._hook.local:
            flag = finite.float()
            dist.all_reduce(flag, dist.ReduceOp.MIN)
            return bool(flag)
        return bool(finite)

    def _check_state(self) -> None:
        """RecipeError after the first step rather than at a resume: what is no tensor and no plain
        value would be code in a checkpoint."""
        for key, value in self._optimizer.state_dict().items():
            if not _is_plain(value):
                name = type(self._optimizer).__name__
                raise RecipeError(
                    f"optim.name={name} keeps more than tensors and numbers in its {key}, which a "
                    "checkpoint of engine.kind=ddp does not hold: use engine.kind=deepspeed, or "
                    "another optimizer"
                )
        self._can_be_saved = True

    def discard(self) -> None:
        for parameter in self._trained:
            parameter.grad = self._masters[parameter].grad = None

    def set_lr(self, lr: float) -> None:
        self.lr = lr
        for group in self._optimizer.param_groups:
            set_rate(group, lr * group.get("lr_scale", 1.0))

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last reduced gradient before clipping; this rank's own under local SGD."""
        return self._norm

    # Full tensors ---------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module.named_parameters()

    def get_gradient(self, parameter: nn.Parameter) -> Tensor:
        if parameter.grad is None:
            return torch.zeros(parameter.shape, device=self.device)
        return parameter.grad.detach().float()

    def set_gradient(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.grad = value.to(parameter.dtype).reshape(parameter.shape).clone()

    def get_parameter(self, parameter: nn.Parameter) -> Tensor:
        return self._masters[parameter].detach().clone()

    def set_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        self._masters[parameter].data.copy_(value)
        parameter.data.copy_(value)

    def moments(self) -> list[str]:
        kept = [self._moments_of(parameter) for parameter in self._trained]
        return list(dict.fromkeys(name for moments in kept for name in moments))

    def get_moment(self, parameter: nn.Parameter, key: str) -> Tensor | None:
        moment = self._moments_of(parameter).get(key)
        return None if moment is None else moment.detach().float().clone()

    def set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        self._moments_of(parameter)[key].copy_(value)

    def _moments_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Tensors that hold one number of every weight."""
        state = self._optimizer.state.get(self._masters[parameter], {})
        return {
            name: value
            for name, value in state.items()
            if torch.is_tensor(value) and value.dim() and value.shape == parameter.shape
        }

    # Checkpoints ----------------------------------------------------------------------------

    def save(self, folder: Path, tag: str) -> None:
        """`weights.pt` and `optimizer.pt`, and what single ranks remember. Collective.

        Under local SGD every rank writes weights and optimizer of its own, and `weights.pt` holds
        the mean of all ranks.
        """
        target = folder / tag
        own: dict[str, Any] = {"hook": self._hook.state()}
        weights = self._weights()
        if self._hook.local:
            own |= {"weights": weights, "optimizer": self._optimizer.state_dict()}
            weights = {name: self._mean(tensor) for name, tensor in weights.items()}
        if own["hook"]:
            agree(lambda: torch.save(own, target / f"rank{self.rank}.pt"))
        from_rank0(lambda: torch.save(weights, target / "weights.pt"))
        from_rank0(lambda: torch.save(self._optimizer.state_dict(), target / "optimizer.pt"))

    def load(self, folder: Path, tag: str) -> None:
        """Restore what `save` wrote. DataError for a file that is missing. Collective."""
        source = folder / tag
        own = _read(source / f"rank{self.rank}.pt") if self._hook.state() else {}
        weights = own.get("weights") or _read(source / "weights.pt")
        named = self.module.state_dict(keep_vars=True)
        for name, tensor in named.items():
            if isinstance(tensor, nn.Parameter):
                self.set_parameter(tensor, weights[name])
            else:
                tensor.copy_(weights[name])
        self._optimizer.load_state_dict(own.get("optimizer") or _read(source / "optimizer.pt"))
        if own:
            self._hook.load_state(own["hook"], self.device)
        barrier()

    def _weights(self) -> dict[str, Tensor]:
        """fp32 masters and buffers under every name that the module has for them."""
        named = self.module.state_dict(keep_vars=True)
        return {
            name: self._masters[tensor].detach() if isinstance(tensor, nn.Parameter) else tensor
            for name, tensor in named.items()
        }

    def _mean(self, tensor: Tensor) -> Tensor:
        """Over ranks; of what is no weight, this rank's. Collective."""
        if not tensor.is_floating_point():
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.world_size


def _own_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", torch.cuda.current_device())


def _wrapped(module: nn.Module, section: EngineConfig) -> DistributedDataParallel:
    # Experts, rare clusters and matrices whose gradient a head writes are unused at times. Buckets
    # also stay as they were made then, which a resume to the last bit rests on.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # from torch 2.13 on
    return DistributedDataParallel(
        module, broadcast_buffers=False, find_unused_parameters=True,
        bucket_cap_mb=section.bucket_mib,
    )  # fmt: skip


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(part) for part in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, Tensor | int | float | str)


def _read(path: Path) -> dict[str, Any]:
    """Tensors and plain values only: no code of a file is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: it was saved by another engine or hook") from None
