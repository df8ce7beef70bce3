"""Weights of a checkpoint: fp32 tensors by parameter name, whatever ZeRO stage saved them.

From stage 1 on DeepSpeed's own converter puts the fp32 masters of all ranks together. Stage 0 keeps
the whole module in one file; in half precision those are the rounded weights that the forward pass
used, since the masters beside them carry no names. DistributedDataParallel's engine keeps fp32
masters by name.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from data_prep.errors import DataError
from pipeline.train.state import read_trainer

_WHOLE_MODULE = "mp_rank_00_model_states.pt"
_DDP_WEIGHTS = "weights.pt"


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """fp32 CPU tensors by name in the trained module, tied weights under each of their names.

    `checkpoint` is a folder `checkpoints/global_stepN`. DataError when it is not a checkpoint or a
    file is missing or damaged.
    """
    if not (checkpoint / "manifest.json").is_file():
        hint = "it is not a finished checkpoint: name another in export.checkpoint"
        raise DataError(f"{checkpoint} holds no manifest.json; {hint}")
    stage = read_trainer(checkpoint)["zero_stage"]
    try:
        weights = _whole(checkpoint) if stage == 0 else _partitioned(checkpoint)
    # What a damaged pickle or zip raises is not specified: every kind of error has been seen.
    except Exception as error:
        hint = "restore it or name another in export.checkpoint"
        raise DataError(
            f"{checkpoint}: weights of ZeRO stage {stage} cannot be read ({error}); {hint}"
        ) from error
    return {name: tensor.float() for name, tensor in weights.items()}


def _whole(checkpoint: Path) -> dict[str, Tensor]:
    if (checkpoint / _DDP_WEIGHTS).is_file():
        return torch.load(checkpoint / _DDP_WEIGHTS, map_location="cpu", weights_only=True)
    # The file also holds optimizer state as plain Python objects, which weights_only would refuse.
    content = torch.load(checkpoint / _WHOLE_MODULE, map_location="cpu", weights_only=False)
    return content["module"]


def _partitioned(checkpoint: Path) -> dict[str, Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
