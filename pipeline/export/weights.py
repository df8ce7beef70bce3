"""Weights of a checkpoint: fp32 tensors by parameter name, whatever ZeRO stage saved them.

From stage 1 on DeepSpeed's own converter puts the fp32 masters of all ranks together. Stage 0 keeps
the whole module in one file; in half precision those are the rounded weights that the forward pass
used, since the masters beside them carry no names. A universal checkpoint, which
`deepspeed.checkpoint.ds_to_universal` makes from one of stage 1 on, has a file for every parameter.

Files are mapped, not read: moments and other parts that nobody asks for take no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.serialization import config as serialization

from data_prep.errors import DataError
from pipeline.train.checkpoint import find_checkpoint
from pipeline.train.state import read_trainer

_WHOLE_MODULE = "mp_rank_00_model_states.pt"
_UNIVERSAL = "_universal"


class Source(NamedTuple):
    """Where weights are, and the checkpoint folder that knows of the run (`trainer.json`, plugins):
    the same one, or the one that a universal checkpoint was made from."""

    weights: Path
    run: Path

    @property
    def universal(self) -> bool:
        return (self.weights / "zero").is_dir()


def find_source(checkpoints: Path, name: str | None) -> Source:
    """The checkpoint called `name`, the newest for None, or the universal one that `name` is the
    path of, seen from `checkpoints` or from the working directory.

    RecipeError or DataError as in `pipeline.train.checkpoint.find_checkpoint`.
    """
    for folder in () if name is None else (checkpoints / name, Path(name)):
        if (folder / "zero").is_dir():
            beside = folder.with_name(folder.name.removesuffix(_UNIVERSAL))
            for run in (folder, beside):
                if (run / "trainer.json").is_file():
                    return Source(folder, run)
            raise DataError(
                f"{folder} is a universal checkpoint without trainer.json: keep the checkpoint "
                f"that it was made from as {beside}, or copy its trainer.json and plugins/ into it"
            )
    found = find_checkpoint(checkpoints, name)
    return Source(found, found)


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """fp32 CPU tensors by name in the trained module, tied weights under each of their names.

    `checkpoint` is a folder `checkpoints/global_stepN`, or a universal one. DataError when it is
    not a checkpoint or a file is missing or damaged.
    """
    if (checkpoint / "zero").is_dir():
        return _guarded(_universal, checkpoint, "a universal checkpoint")
    if not (checkpoint / "manifest.json").is_file():
        hint = "it is not a finished checkpoint: name another in export.checkpoint"
        raise DataError(f"{checkpoint} holds no manifest.json; {hint}")
    stage = read_trainer(checkpoint)["zero_stage"]
    read = _whole if stage == 0 else _partitioned
    return _guarded(read, checkpoint, f"ZeRO stage {stage}")


def _guarded(
    read: Callable[[Path], dict[str, Tensor]], checkpoint: Path, kind: str
) -> dict[str, Tensor]:
    try:
        # Masters ask for gradients: what is made of them would keep the files themselves alive.
        with serialization.patch("load.mmap", True), torch.no_grad():  # type: ignore[attr-defined]
            weights = read(checkpoint)
    # What a damaged pickle or zip raises is not specified: every kind of error has been seen.
    except Exception as error:
        hint = "restore it or name another in export.checkpoint"
        raise DataError(
            f"{checkpoint}: weights of {kind} cannot be read ({error}); {hint}"
        ) from error
    return {name: tensor.float() for name, tensor in weights.items()}


def _load(path: Path) -> Any:
    # Files also hold optimizer state as plain Python objects, which weights_only would refuse.
    return torch.load(path, map_location="cpu", weights_only=False)


def _whole(checkpoint: Path) -> dict[str, Tensor]:
    return _load(checkpoint / _WHOLE_MODULE)["module"]


def _partitioned(checkpoint: Path) -> dict[str, Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)


def _universal(checkpoint: Path) -> dict[str, Tensor]:
    """A file for every parameter, flat where stage 3 had it; the module's file beside them knows
    shapes, buffers, and which names share a parameter."""
    content = _load(next(iter(sorted(checkpoint.glob("*model_states.pt")))))
    weights = {name: content["module"][name] for name in content["buffer_names"]}
    for name, shape in [item for group in content["param_shapes"] for item in group.items()]:
        found = _load(checkpoint / "zero" / name / "fp32.pt")
        flat = (found["param"] if isinstance(found, dict) else found).flatten()
        weights[name] = flat[: shape.numel()].view(shape)
    for name, same in dict(content["shared_params"]).items():
        weights[name] = weights[same]
    return weights
