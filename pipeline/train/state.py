"""What a checkpoint holds beside DeepSpeed's files, and whether it fits the run that loads it."""

from __future__ import annotations

import errno
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic_core import to_jsonable_python
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.errors import RecipeError
from data_prep.manifest import read_manifest, sync, write_atomic
from data_prep.shards import Prepared
from pipeline.ranks import rank
from pipeline.recipe import Recipe

_NO_IDENTITY = {"noise_every_steps"}  # of `optim`: looks on and changes nothing


def identity(recipe: Recipe, prepared: Prepared, dtype: str) -> dict[str, Any]:
    """Everything that must stay the same for a resumed run to be the same run."""
    batch = recipe.batch.model_dump(mode="json")
    optim = recipe.optim.model_dump(mode="json", exclude=_NO_IDENTITY)
    horizon = recipe.optim.decay_steps or recipe.optim.decay_tokens
    if horizon is None and recipe.optim.decay != "none":
        optim["decay_steps"] = recipe.run.steps
    # Phases are shares of the run: in a longer one they would lie elsewhere.
    phased = recipe.head.kind == "phased" or recipe.sparsity.kind == "mixed"
    return {
        "model": recipe.model.model_dump(mode="json"),
        "head": recipe.head.model_dump(mode="json"),
        "sparsity": recipe.sparsity.model_dump(mode="json"),
        "optim": optim,
        "batch": {
            key: batch[key] for key in ("global_batch", "window_tokens", "ramp") if batch[key] != []
        },
        "run": {"seed": recipe.run.seed} | ({"steps": recipe.run.steps} if phased else {}),
        "precision": {"dtype": dtype},
        "tokenizer": {"fingerprint": prepared.tokenizer_fingerprint},
        "data": {"fingerprint": prepared.fingerprint},
    }


_OF_EACH_RANK = {"powersgd", "post_local_sgd"}  # hooks that keep something of every rank


def layout(recipe: Recipe, world_size: int) -> dict[str, Any]:
    """How a run is spread: what may change when it is resumed."""
    engine = recipe.engine
    spread = {
        "engine": engine.kind, "comm_hook": engine.comm_hook, "zero_stage": engine.zero_stage,
        "world_size": world_size,
    }  # fmt: skip
    # The factors that PowerSGD keeps are of one rank, and of one cut into buckets.
    factors = {"powersgd_rank": engine.powersgd_rank, "bucket_mib": engine.bucket_mib}
    return spread | (factors if engine.comm_hook == "powersgd" else {})


def differences(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: saved -> now` for every leaf that differs."""
    lines = []
    for key in sorted({*saved, *now}):
        old, new = saved.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} in the checkpoint, {new} now")
    return lines


def _with_newer_keys(saved: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint says, and the default of every key that did not exist when it was written:
    what such a key is for was not done then."""
    filled = dict(saved)
    for name in ("model", "head", "sparsity", "optim"):
        section = getattr(recipe, name)
        if saved[name].get("kind") == getattr(section, "kind", None):
            defaults = {
                key: field.get_default(call_default_factory=True)
                for key, field in type(section).model_fields.items()
                if key not in saved[name] and not field.is_required() and key not in _NO_IDENTITY
            }
            filled[name] = to_jsonable_python(defaults) | saved[name]
    return filled


FORMAT = 2


def check_fits(
    folder: Path, recipe: Recipe, prepared: Prepared, dtype: str, world_size: int
) -> None:
    """RecipeError with all differences when the checkpoint is of another run. Engine, ZeRO stage,
    number of ranks and micro-batch may change, and what was saved in fp32 may go on in half
    precision; with a hook that keeps something of each rank, hook and ranks may not."""
    trainer = read_trainer(folder)
    if trainer["format"] != FORMAT:
        raise RecipeError(
            f"{folder} was saved in format {trainer['format']}, this version reads {FORMAT}: "
            "go on with the version that saved it, or choose another run.name"
        )
    saved = _with_newer_keys(trainer["identity"], recipe)
    wanted = identity(recipe, prepared, dtype)
    saved["run"] = {key: saved["run"].get(key, wanted["run"][key]) for key in wanted["run"]}
    if saved["precision"]["dtype"] == "fp32":
        saved = saved | {"precision": {"dtype": dtype}}
    lines = differences(saved, wanted)
    now = layout(recipe, world_size)
    was = {key: trainer.get(key, now[key]) for key in now}
    if {was["comm_hook"], now["comm_hook"]} & _OF_EACH_RANK:
        may_change = dict.fromkeys(("engine", "zero_stage"))
        lines += differences(was | may_change, now | may_change)
    if lines:
        raise RecipeError(
            f"{folder} cannot be resumed with this recipe:\n  "
            + "\n  ".join(lines)
            + "\nchange the recipe back, or choose another run.name to start a new run"
        )


def conversions(trainer: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as it was when the checkpoint was saved, though it may go on, in words."""
    words = {"engine": "engine", "zero_stage": "ZeRO stage", "world_size": "ranks",
             "dtype": "precision"}  # fmt: skip
    return [
        f"{words[key]} {trainer[key]} -> {now[key]}" for key in words if trainer[key] != now[key]
    ]


def write_trainer(folder: Path, content: dict[str, Any]) -> None:
    write_atomic(folder / "trainer.json", json.dumps(content, indent=1) + "\n")


def read_trainer(folder: Path) -> dict[str, Any]:
    return read_manifest(folder / "trainer.json")


def save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors, onto the disk itself. OSError when it is full."""
    try:
        save_file({k: tensor.contiguous().cpu() for k, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:  # which hides what the system said
        found = re.search(r"os error (\d+)", str(error))
        code = int(found[1]) if found else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from None
    sync(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path) if path.is_file() else {}


def save_rng(folder: Path) -> None:
    """Generators of this rank: torch on CPU and device, numpy, python."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "python": torch.tensor(internal, dtype=torch.int64),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    numbers = {"numpy": [kind, position, has_gauss, cached], "python": [version, gauss]}
    path = folder / f"rank{rank()}.safetensors"
    save_tensors(path, tensors, {"numbers": json.dumps(numbers)})


def load_rng(folder: Path) -> bool:
    """Restore what `save_rng` wrote for this rank; False when that rank did not exist then."""
    path = folder / f"rank{rank()}.safetensors"
    if not path.is_file():
        return False
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        numbers = json.loads(file.metadata()["numbers"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    torch.set_rng_state(tensors["torch"])
    kind, position, has_gauss, cached = numbers["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
    version, gauss = numbers["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    return True
