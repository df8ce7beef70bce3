"""What of the training state lies on this rank, parameter by parameter, at every ZeRO stage.

A piece is a run of one flattened parameter in fp32 with the optimizer's tensors beside it, as views
that can be read and written. Stage 0 has one piece a parameter on every rank, stages 1 and 2 what
the rank's slice of DeepSpeed's flat buffers covers of it, stage 3 the rank's share of each. Saved
by name and position (`piece_files`), the state fits any stage and number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from data_prep.errors import RecipeError
from pipeline.optim.build import set_rate
from pipeline.train import nvme, zero_state

WEIGHT = "weight"
IN_MEMORY = -1  # in the place of a group's number: all groups that are not on a disk


@dataclass(frozen=True)
class Piece:
    """Values from `start` on of the parameter `name`. `weight` is the master in fp32; `state` is
    the optimizer's own, of which the values from `offset` on belong to this piece."""

    name: str
    shape: torch.Size  # of the whole parameter
    start: int
    weight: Tensor  # flat
    state: dict[str, Any]
    offset: int | None = None  # None: all of each tensor, whatever its shape
    replicated: bool = False  # every rank holds the same

    def tensors(self) -> dict[str, Tensor]:
        """Flat values by key: the weight and the optimizer's tensors."""
        found = {WEIGHT: self.weight}
        for key, value in leaves(self.state):
            flat = value.reshape(-1)
            if self.offset is not None:
                flat = flat.narrow(0, self.offset, self.weight.numel())
            found[key] = flat
        return found

    def write(self, key: str, values: Tensor) -> None:
        """Replace what `tensors` gives for `key`."""
        if key == WEIGHT:
            self.weight.copy_(values)
            return
        own = dict(leaves(self.state))[key]
        if self.offset is None:
            own.copy_(values.view(own.shape))
        else:
            own.view(-1).narrow(0, self.offset, values.numel()).copy_(values)

    def numbers(self) -> dict[str, Any]:
        """What the optimizer counts for this parameter, such as its steps."""
        return {key: _number(value) for key, value in self.state.items() if _is_number(value)}

    def set_numbers(self, numbers: dict[str, Any]) -> None:
        for key, value in numbers.items():
            current = self.state.get(key)
            if torch.is_tensor(current):
                current.fill_(value)
            else:
                self.state[key] = value


def leaves(state: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an optimizer's state by key, also those in lists, such as `GG.0`, and those
    that a tensor of few bits is made of, such as `exp_avg.codes`."""
    for key, value in state.items():
        if is_traceable_wrapper_subclass(value):
            names, _ = value.__tensor_flatten__()
            yield from leaves({f"{key}.{name}": getattr(value, name) for name in names})
        elif torch.is_tensor(value) and value.dim():
            yield key, value
        elif isinstance(value, list | tuple):
            parts = {f"{key}.{number}": part for number, part in enumerate(value)}
            yield from leaves(parts)


def check_plain(optimizer: torch.optim.Optimizer) -> None:
    """RecipeError for an optimizer that keeps more than tensors and plain values, which would be
    code in a checkpoint."""
    for state in (*optimizer.state.values(), *optimizer.param_groups):
        for key, value in state.items():
            if not _is_plain(value):
                raise RecipeError(
                    f"optim.name={type(optimizer).__name__} keeps more than tensors and numbers in "
                    f"{key}, which a checkpoint does not hold: use another optimizer"
                )


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(part) for part in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, Tensor | int | float | str)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (torch.is_tensor(value) and not value.dim())


def _number(value: Any) -> Any:
    return value.item() if torch.is_tensor(value) else value


def pieces(
    engine: Any, stage: int, module: nn.Module, write: bool = False
) -> Iterator[list[Piece]]:
    """The pieces of this rank: parameters and buffers in their order. `engine` is DeepSpeed's.

    In one list, or, where an optimizer lies on a disk, in several, each of them there only until
    the next is asked for. `write` tells that they will be written.
    """
    find = {0: _whole, 1: _of_flat_slice, 2: _of_flat_slice, 3: _of_share}[stage]
    away = nvme.groups(engine.optimizer)
    members: dict[int, list[tuple[str, Any]]] = {number: [] for number in (IN_MEMORY, *away)}
    for name, parameter in module.named_parameters():
        group = _place(engine, parameter)[0] if away and parameter.requires_grad else IN_MEMORY
        members[group if group in away else IN_MEMORY].append((name, parameter))
    for number, named in members.items():
        with nvme.in_memory(engine.optimizer, number, write):
            found = [find(engine, name, parameter) for name, parameter in named]
            held = [piece for piece in found if piece is not None]
            yield held + buffer_pieces(module) if number == IN_MEMORY else held


def _place(engine: Any, parameter: Any) -> tuple[int, int]:
    """The group of a parameter at stage 3, and where in it this rank's share begins."""
    optimizer = engine.optimizer
    group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    return int(group), int(offset)


def buffer_pieces(module: nn.Module) -> list[Piece]:
    """Those that a module saves; no stage divides them."""
    kept = module.state_dict(keep_vars=True)
    return [
        Piece(name, buffer.shape, 0, buffer.view(-1), {}, replicated=True)
        for name, buffer in module.named_buffers()
        if name in kept
    ]


def to_write(held: list[Piece]) -> list[Piece]:
    """Those of `held` that this rank has to save: replicated ones are shared out evenly."""
    loads, mine = [0] * dist.get_world_size(), set()
    for piece in sorted(held, key=lambda p: (-p.weight.numel(), p.name)):
        if piece.replicated:
            owner = loads.index(min(loads))
            loads[owner] += piece.weight.numel()
            if owner == dist.get_rank():
                mine.add(piece.name)
    return [piece for piece in held if not piece.replicated or piece.name in mine]


def _whole(engine: Any, name: str, parameter: Any) -> Piece:
    state: dict[str, Any] = {}
    weight = parameter
    if parameter.requires_grad:
        weight = zero_state.stage0_master(engine, parameter)
        # Not indexed: the state of a torch optimizer makes an empty entry for what it lacks.
        state = zero_state.inner_optimizer(engine).state.get(weight, {})
    return Piece(name, parameter.shape, 0, weight.data.view(-1), state, replicated=True)


def _of_flat_slice(engine: Any, name: str, parameter: Any) -> Piece | None:
    if not parameter.requires_grad:
        return _whole(engine, name, parameter)
    mapping = parameter._hp_mapping
    if mapping is None:  # another rank's slice holds all of it
        return None
    flat = engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    state = zero_state.inner_optimizer(engine).state.get(flat, {})
    weight = flat.data.narrow(0, here.start, here.numel)
    return Piece(name, parameter.shape, there.start, weight, state, here.start)


def _share(parameter: Any) -> tuple[int, int]:
    """Where this rank's part of a parameter begins at stage 3, and its size without padding."""
    size = parameter.ds_tensor.ds_numel
    start = dist.get_rank(parameter.ds_process_group) * size
    return start, max(0, min(size, math.prod(parameter.ds_shape) - start))


def _of_share(engine: Any, name: str, parameter: Any) -> Piece | None:
    share = parameter.ds_tensor
    start, size = _share(parameter)
    if not size:  # padding alone
        return None
    if not parameter.requires_grad:
        return Piece(name, parameter.ds_shape, start, share.data.view(-1).narrow(0, 0, size), {})
    group, offset = _place(engine, parameter)
    flat = engine.optimizer.fp32_partitioned_groups_flat[group]
    state = zero_state.inner_optimizer(engine).state.get(flat, {})
    weight = flat.data.narrow(0, offset, size)
    return Piece(name, parameter.ds_shape, start, weight, state, offset)


def group_numbers(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the optimizer counts by group of parameters; some count their steps there."""
    return [
        {k: v for k, v in group.items() if isinstance(v, bool | int | float) and k != "lr"}
        for group in optimizer.param_groups
    ]


def set_group_numbers(optimizer: torch.optim.Optimizer, saved: list[dict[str, Any]]) -> None:
    for group, numbers in zip(optimizer.param_groups, saved, strict=True):
        group |= numbers


def make_optimizer_state(engine: Any, stage: int) -> None:
    """Let the optimizer make the tensors that it makes in its first step, for a load to fill."""
    inner = zero_state.inner_optimizer(engine)
    if stage < 3:
        step_of_nothing(inner)
        return
    with no_rate(inner):
        for number, flat in enumerate(engine.optimizer.fp32_partitioned_groups_flat):
            there = nvme.in_memory(engine.optimizer, number, write=True)
            with there, _zero_gradients([flat]):
                engine.optimizer._optimizer_step(number)


def step_of_nothing(optimizer: torch.optim.Optimizer) -> None:
    """A step with gradients and a rate of zero."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    with no_rate(optimizer), _zero_gradients(tensors):
        optimizer.step()


@contextmanager
def no_rate(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Steps in the body move nothing by the gradient."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        set_rate(group, 0.0)
    yield
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        set_rate(group, rate)


@contextmanager
def _zero_gradients(tensors: list[Tensor]) -> Iterator[None]:
    before = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor)
    yield
    for tensor, gradient in zip(tensors, before, strict=True):
        tensor.grad = gradient


def refresh_forward_weights(engine: Any, stage: int, module: nn.Module, saved: Any) -> None:
    """After the masters were written from `saved`: the weights that the next forward reads.
    Collective."""
    if stage in (1, 2):
        engine.optimizer.update_lp_params()
        return
    for name, parameter in module.named_parameters():
        if stage == 0:
            if parameter.requires_grad:
                parameter.data.copy_(zero_state.stage0_master(engine, parameter))
            continue
        start, size = _share(parameter)
        if size:
            flat = parameter.ds_tensor.data.view(-1)  # type: ignore[attr-defined]
            flat[:size].copy_(saved.read(name, WEIGHT, start, size))
        if parameter.data.numel() == math.prod(parameter.ds_shape):  # type: ignore[attr-defined]
            # Small parameters stay gathered.
            parameter.data.copy_(saved.whole(name).view_as(parameter.data))


def tied_names(module: nn.Module) -> dict[str, str]:
    """Second names of parameters that have several, and the first name of each."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    return tied
