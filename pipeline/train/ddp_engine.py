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
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.clock import StepResult
from pipeline.optim.build import set_rate
from pipeline.recipe.engine import EngineConfig
from pipeline.train import pieces
from pipeline.train.comm_hooks import build_hook
from pipeline.train.piece_files import OF_A_RANK, SavedPieces, Snapshot, snapshot
from pipeline.train.pieces import Piece

_HOOK = "hook/"


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
            for parameter in module.parameters():  # no buffers: positions are counted in them
                parameter.data = parameter.data.bfloat16()
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
        if not self._can_be_saved:  # told in the first step rather than at a save
            pieces.check_plain(self._optimizer)
            self._can_be_saved = True
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

    def snapshot(self, copy: bool) -> Snapshot:
        """What this rank has to save. Under local SGD every rank saves weights and optimizer of its
        own beside the mean of all; a hook may remember something of each rank. Collective."""
        held = self._pieces()
        own = self._own_pieces(held)
        if self._hook.local:
            held = [replace(piece, weight=self._mean(piece.weight), state={}) for piece in held]
        about = {
            "groups": pieces.group_numbers(self._optimizer),
            "loss_scale": {},
            "tied": pieces.tied_names(self.module),
            f"hook of rank {self.rank}": self._hook.numbers(),
        }
        return snapshot([*pieces.to_write(held), *own], about, copy)

    def restore(self, saved: SavedPieces) -> None:
        """Go on from what either engine has saved. Collective."""
        if saved.has_optimizer_state:
            pieces.step_of_nothing(self._optimizer)
        self._hook.load_numbers(saved.about.get(f"hook of rank {self.rank}", {}))
        shared = self._pieces()
        for piece in shared:
            mine = replace(piece, name=self._of_this_rank(piece.name))
            saved.fill(mine if mine.name in saved.shapes else piece)
        for name, shape in saved.shapes.items():
            if name.startswith(self._of_this_rank(_HOOK)):
                tensor = saved.whole(name).view(shape).to(self.device)
                self._hook.load_tensor(name.removeprefix(self._of_this_rank(_HOOK)), tensor)
        for parameter, master in self._masters.items():
            if master is not parameter:
                parameter.data.copy_(master)
        pieces.set_group_numbers(self._optimizer, saved.about["groups"])

    def _pieces(self) -> list[Piece]:
        """Weights, optimizer and buffers, whole."""
        found = []
        for name, parameter in self.module.named_parameters():
            master = self._masters[parameter]
            state = self._optimizer.state.get(master, {})
            found.append(Piece(name, master.shape, 0, master.data.view(-1), state, replicated=True))
        return found + pieces.buffer_pieces(self.module)

    def _own_pieces(self, held: list[Piece]) -> list[Piece]:
        """What is of this rank alone."""
        own = [
            Piece(self._of_this_rank(_HOOK + key), tensor.shape, 0, tensor.detach().reshape(-1), {})
            for key, tensor in self._hook.tensors().items()
        ]
        if self._hook.local:
            own += [
                replace(piece, name=self._of_this_rank(piece.name), replicated=False)
                for piece in held
            ]
        return own

    def _of_this_rank(self, name: str) -> str:
        return f"{OF_A_RANK}{self.rank}/{name}"

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
