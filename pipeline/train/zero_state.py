"""Full gradients, parameters and moments at every ZeRO stage, and how to drop a gradient.

DeepSpeed's `safe_*` accessors do nothing at stage 0, leave the forward weight stale at stages 1 and
2, and fail at stage 3 for tensors that do not divide by the world size. These functions give one
behaviour. They are collective: every rank calls them with the same parameter and the same value.
A parameter is typed Any because ZeRO hangs its own attributes on it.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_grad,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_grad,
    safe_set_local_optimizer_state,
)
from torch import Tensor

_SCALER_NUMBERS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def scaler_numbers(engine: Any) -> dict[str, Any]:
    """What the loss scaler of fp16 has come to; nothing in other precisions."""
    scaler = _scaler(engine)
    return {key: getattr(scaler, key) for key in _SCALER_NUMBERS if hasattr(scaler, key)}


def set_scaler_numbers(engine: Any, numbers: dict[str, Any]) -> None:
    scaler = _scaler(engine)
    for key in scaler_numbers(engine):
        if key in numbers:
            setattr(scaler, key, numbers[key])


def _scaler(engine: Any) -> Any:
    optimizer = engine.optimizer
    return getattr(optimizer, "loss_scale_config", getattr(optimizer, "loss_scaler", None))


def loss_scale(engine: Any) -> float:
    """The factor that gradients carry between backward and step (1 without fp16)."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "loss_scale_config"):
        return float(optimizer.loss_scale_config.cur_scale)
    return float(getattr(optimizer, "loss_scale", 1.0) or 1.0)


def discard_gradients(engine: Any, stage: int) -> None:
    """Forget what backward accumulated, as DeepSpeed itself does after an overflow."""
    optimizer = engine.optimizer
    if stage == 0:
        engine.zero_grad()
    elif stage < 3:
        optimizer.micro_step_id = -1
        optimizer.zero_grad(set_to_none=True)
        optimizer._release_preflattened_grad_buffers()
        if optimizer.cpu_offload:
            optimizer.reset_cpu_buffers()
        for group in list(optimizer.averaged_gradients):
            optimizer.averaged_gradients[group] = None
            optimizer.all_grad_tensors[group] = None
    else:
        optimizer._overflow_clean_up(optimizer.loss_scale)


def get_gradient(engine: Any, stage: int, parameter: Any) -> Tensor:
    """Reduced gradient of the accumulated step, still multiplied by the loss scale."""
    gradient = parameter.grad if stage == 0 else safe_get_full_grad(parameter)
    if gradient is None:
        return torch.zeros(_shape(parameter), dtype=torch.float32, device=parameter.device)
    return gradient.detach().float().reshape(_shape(parameter))


def set_gradient(engine: Any, stage: int, parameter: Any, value: Tensor) -> None:
    if stage == 0:
        parameter.grad = value.to(parameter.dtype).reshape(parameter.shape).clone()
    elif stage < 3:
        safe_set_full_grad(parameter, value)
    else:
        safe_set_local_grad(parameter, _local_part(parameter, value))


def get_parameter(engine: Any, stage: int, parameter: Any) -> Tensor:
    master = stage0_master(engine, parameter) if stage == 0 else safe_get_full_fp32_param(parameter)
    assert master is not None
    return master.detach().float().reshape(_shape(parameter)).clone()


def set_parameter(engine: Any, stage: int, parameter: Any, value: Tensor) -> None:
    """Write both copies: the fp32 master and the weight that the next forward reads."""
    if stage == 3:
        local = _local_part(parameter, value)
        safe_set_local_fp32_param(parameter, local)
        parameter.ds_tensor.data.copy_(local.reshape(parameter.ds_tensor.shape))
        if parameter.data.numel() == value.numel():  # small parameters stay gathered
            parameter.data.copy_(value.reshape(parameter.shape))
        return
    if stage == 0:
        stage0_master(engine, parameter).data.copy_(value)
    else:
        safe_set_full_fp32_param(parameter, value)
    parameter.data.copy_(value)


def get_moment(engine: Any, stage: int, parameter: Any, key: str) -> Tensor | None:
    """A full optimizer state tensor such as `exp_avg`; None before the first step, and for a name
    that is none of `moments`."""
    # Looked up first: a rank that holds a part of the parameter would fail, the others would wait.
    if key not in moments(engine):
        return None
    if stage == 0:
        return _stage0_state(engine, parameter)[key].detach().float().clone()
    full = safe_get_full_optimizer_state(parameter, key)
    return None if full is None else full.reshape(_shape(parameter)).clone()


def moments(engine: Any) -> list[str]:
    """Names of the optimizer's tensors of every weight; none before its first step."""
    state: dict[str, Any] = next(iter(inner_optimizer(engine).state.values()), {})
    return [key for key, value in state.items() if torch.is_tensor(value) and value.dim()]


def link_moments(engine: Any, stage: int) -> None:
    """After a load: at stages 1 and 2 DeepSpeed itself finds the moments only in the next step."""
    if stage in (1, 2) and moments(engine):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def set_moment(engine: Any, stage: int, parameter: Any, key: str, value: Tensor) -> None:
    if stage == 0:
        _stage0_state(engine, parameter)[key].copy_(value)
    elif stage < 3:
        safe_set_full_optimizer_state(parameter, value, key)
    else:
        safe_set_local_optimizer_state(parameter, _local_part(parameter, value), key)


def _shape(parameter: Any) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _local_part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's slice of a full tensor at stage 3, zero-padded to DeepSpeed's partition size."""
    size = parameter.ds_tensor.ds_numel
    rank = torch.distributed.get_rank(parameter.ds_process_group)
    world = torch.distributed.get_world_size(parameter.ds_process_group)
    flat = value.detach().float().flatten()
    padded = torch.nn.functional.pad(flat, (0, size * world - flat.numel()))
    return padded.narrow(0, size * rank, size).clone()


def stage0_master(engine: Any, parameter: Any) -> Tensor:
    """At stage 0 the master is the parameter itself in fp32, a separate copy in half precision."""
    optimizer = engine.optimizer
    if not hasattr(optimizer, "fp32_groups"):
        return parameter
    for half, full in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        for p16, p32 in zip(half, full, strict=True):
            if p16 is parameter:
                return p32
    raise KeyError("parameter is not in the optimizer")


def _stage0_state(engine: Any, parameter: Any) -> dict[str, Tensor]:
    return inner_optimizer(engine).state[stage0_master(engine, parameter)]


def inner_optimizer(engine: Any) -> Any:
    """The torch optimizer, which ZeRO and half precision wrap."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)
