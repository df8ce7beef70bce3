"""The DeepSpeed engine behind the `Engine` protocol; the only caller of `deepspeed.initialize`.

DeepSpeed's behaviour differs by ZeRO stage in ways that its API hides. What is evened out here:
gradients are summed over ranks (the loss is divided by the global token count before), clipping and
the finite check exist at stage 0 too, an accumulated gradient can be discarded at every stage, and
full gradients, parameters and moments can be read and written at every stage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError
from torch import Tensor, nn

from data_prep.errors import RecipeError
from pipeline.clock import StepResult
from pipeline.optim.build import set_rate
from pipeline.train import nvme, pieces, zero_state
from pipeline.train.piece_files import SavedPieces, Snapshot, snapshot


def init_distributed(timeout_minutes: float) -> None:
    """Start the process group once, on NCCL with GPUs and gloo without. Collective."""
    if get_accelerator().device_name() == "cpu":
        # Without this, the first start compiles a shared-memory op that only inference uses.
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})
    if not dist.is_initialized():
        deepspeed.init_distributed(
            get_accelerator().communication_backend_name(),
            timeout=timedelta(minutes=timeout_minutes),
            dist_init_required=True,
            verbose=False,
        )


@contextlib.contextmanager
def _no_hidden_first_step(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Undo the step with zero gradients that DeepSpeed takes at half-precision stage 0.

    It would decay the weights once and start Adam's bias correction at step 2.
    """
    with pieces.no_rate(optimizer):
        yield
    optimizer.state.clear()


def check_config(config: dict[str, Any], where: Path) -> None:
    """DeepSpeed's own look at the keys inside a template's sections, as one RecipeError."""
    models = {
        "zero_optimization": DeepSpeedZeroConfig, "fp16": DeepSpeedFP16Config,
        "bf16": DeepSpeedBF16Config,
    }  # fmt: skip
    for section, model in models.items():
        try:
            model(**config[section])
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join([section, *(str(part) for part in first["loc"])])
            raise RecipeError(f"{where}: {key}: {first['msg']}") from None
    if config["zero_optimization"].get("round_robin_gradients"):
        raise RecipeError(
            f"{where}: zero_optimization.round_robin_gradients: DeepSpeed 0.19.8 orders parameters "
            "anew and reads full tensors back in the old order: remove it"
        )
    nvme.check_keys(config["zero_optimization"], where)
    _check_optimizer_keys(config, where)


def _check_optimizer_keys(config: dict[str, Any], where: Path) -> None:
    """Keys that make DeepSpeed take an optimizer of another kind, whose state a checkpoint here
    does not know: told at the start rather than at the first save."""
    zero, bf16 = config["zero_optimization"], config["bf16"]
    accumulated = config.get("data_types", {}).get("grad_accum_dtype")
    offload = (zero.get("offload_optimizer") or {}).get("device")
    wrong = {
        "data_types.grad_accum_dtype with bf16 below ZeRO 2":
            bf16["enabled"] and accumulated not in (None, "bf16", "bfloat16") and zero["stage"] < 2,
        "bf16.bf16_master_weights_and_grads without offload_optimizer":
            bf16.get("bf16_master_weights_and_grads") and offload != "cpu",
        "zero_optimization.zenflow": zero.get("zenflow"),
    }  # fmt: skip
    for keys, found in wrong.items():
        if found:
            raise RecipeError(f"{where}: {keys}: such weights could not be saved; remove the key")


def check_machine(config: dict[str, Any]) -> None:
    """RecipeError for what a configuration asks and DeepSpeed cannot do on this machine."""
    zero = config["zero_optimization"]
    nvme.check_disk(zero)
    if config["fp16"]["enabled"] and not get_accelerator().is_fp16_supported():
        raise RecipeError(
            "precision fp16 needs a GPU or a processor that computes in fp16, and neither was "
            "found: use precision.dtype=fp32 or bf16"
        )
    if zero.get("zero_quantized_weights") and get_accelerator().device_name() == "cpu":
        raise RecipeError(
            "zero_optimization.zero_quantized_weights: DeepSpeed quantises on GPUs only, and none "
            "was found: remove it from the template"
        )


def shut_down() -> None:
    """Leave the process group together: exiting without this aborts in gloo. Collective."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


class DeepSpeedEngine:
    """Wraps a DeepSpeed engine; see `pipeline.protocols.Engine`."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: dict[str, Any],
    ) -> None:
        self._stage = int(config["zero_optimization"]["stage"])
        self._half = config["fp16"]["enabled"] or config["bf16"]["enabled"]
        self._clip = float(config["gradient_clipping"])
        config = dict(config)
        if self._owns_clipping:
            config["gradient_clipping"] = 0.0
        with _no_hidden_first_step(optimizer):
            self._ds, *_ = deepspeed.initialize(
                model=module, optimizer=optimizer, config=config, dist_init_required=False
            )
        nvme.align_gradients(self._ds.optimizer)
        # Too many overflows in a row are judged by the loop, by one rule at every stage.
        scaler: Any = getattr(self._ds.optimizer, "loss_scaler", None)
        if hasattr(scaler, "raise_error_at_min_scale"):
            scaler.raise_error_at_min_scale = False
        self.module = module
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = torch.device(self._ds.device)
        # Their list: walking through all modules takes as long as the norm of a small model.
        self._parameters = list(module.parameters())
        if self._stage == 0 and self.world_size == 1:
            # DeepSpeed copies all gradients through buckets though nobody is there to add up with.
            self._ds.enable_backward_allreduce = False
        self._norm: float | None = None
        self._can_be_saved = False
        self.lr = 0.0

    @property
    def _owns_clipping(self) -> bool:
        """At fp32 stage 0 DeepSpeed drops the norm and applies a NaN: there we clip ourselves."""
        return self._stage == 0 and not self._half

    # One step -----------------------------------------------------------------------------

    def forward(self, *inputs: Any) -> Any:
        return self._ds(*inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate; `last` marks the final micro-batch, whose backward reduces over ranks."""
        self._ds.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; the loss is already a share of the global sum.
        loss = loss * self.world_size
        if self._stage == 0 and self._half:
            # 0.19.8 unscales gradients in this optimizer's step but never scales the loss.
            loss = loss.float() * self.loss_scale
        self._ds.backward(loss, scale_wrt_gas=False)

    def step(self) -> StepResult:
        self._ds.set_gradient_accumulation_boundary(True)
        if self._owns_clipping:
            limit = self._clip if self._clip > 0 else float("inf")
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
            self._norm = float(norm)
            if not torch.isfinite(norm):
                self.discard()
                return StepResult.OVERFLOW
        scale = self.loss_scale  # the step may change it
        self._ds.step()
        if not self._owns_clipping:
            norm = self._ds.get_global_grad_norm()
            # The half-precision optimizer of stage 0 reports the norm of the scaled gradient.
            self._norm = None if norm is None else float(norm) / (scale if self._stage == 0 else 1)
        if not self._ds.was_step_applied():
            return StepResult.OVERFLOW
        if not self._can_be_saved:  # told in the first step rather than at a save
            pieces.check_plain(zero_state.inner_optimizer(self._ds))
            self._can_be_saved = True
        return StepResult.APPLIED

    def discard(self) -> None:
        zero_state.discard_gradients(self._ds, self._stage)

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Nothing to do: `last` says it in backward, the only place where DeepSpeed reduces."""
        return contextlib.nullcontext()

    def set_lr(self, lr: float) -> None:
        self.lr = lr
        for group in self._ds.optimizer.param_groups:
            set_rate(group, lr * group.get("lr_scale", 1.0))

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last reduced gradient before clipping; None where DeepSpeed has none."""
        return self._norm

    @property
    def loss_scale(self) -> float:
        return float(zero_state.loss_scale(self._ds))

    # Full tensors ---------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module.named_parameters()

    def get_gradient(self, parameter: nn.Parameter) -> Tensor:
        return zero_state.get_gradient(self._ds, self._stage, parameter) / self.loss_scale

    def set_gradient(self, parameter: nn.Parameter, value: Tensor) -> None:
        zero_state.set_gradient(self._ds, self._stage, parameter, value * self.loss_scale)

    def get_parameter(self, parameter: nn.Parameter) -> Tensor:
        return zero_state.get_parameter(self._ds, self._stage, parameter)

    def set_parameter(self, parameter: nn.Parameter, value: Tensor) -> None:
        zero_state.set_parameter(self._ds, self._stage, parameter, value)

    def moments(self) -> list[str]:
        return zero_state.moments(self._ds)

    def get_moment(self, parameter: nn.Parameter, key: str) -> Tensor | None:
        return zero_state.get_moment(self._ds, self._stage, parameter, key)

    def set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        zero_state.set_moment(self._ds, self._stage, parameter, key, value)

    # Checkpoints ----------------------------------------------------------------------------

    def snapshot(self, copy: bool) -> Snapshot:
        """What this rank has to save of weights, optimizer and loss scale."""
        about = {
            "groups": pieces.group_numbers(zero_state.inner_optimizer(self._ds)),
            "loss_scale": zero_state.scaler_numbers(self._ds),
            "tied": pieces.tied_names(self.module),
        }
        lists = pieces.pieces(self._ds, self._stage, self.module)
        held = chain.from_iterable(pieces.to_write(some) for some in lists)
        return snapshot(held, about, copy or bool(nvme.groups(self._ds.optimizer)))

    def restore(self, saved: SavedPieces) -> None:
        if saved.has_optimizer_state:
            pieces.make_optimizer_state(self._ds, self._stage)
        for held in pieces.pieces(self._ds, self._stage, self.module, write=True):
            for piece in held:
                saved.fill(piece)
        pieces.refresh_forward_weights(self._ds, self._stage, self.module, saved)
        pieces.set_group_numbers(zero_state.inner_optimizer(self._ds), saved.about["groups"])
        zero_state.set_scaler_numbers(self._ds, saved.about["loss_scale"])
        zero_state.link_moments(self._ds, self._stage)
