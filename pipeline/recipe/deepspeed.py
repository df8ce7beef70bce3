"""The DeepSpeed JSON of a run: a template of `ds_configs/` with our settings filled in.

DeepSpeed takes a misspelt top-level key in silence, clips at 1.0 unless told otherwise, and lets a
JSON contradict the training script. So a template may hold only keys that DeepSpeed owns; what the
recipe owns is "auto" there (or equal to the recipe), and everything else is an error that names
both places.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_prep.errors import RecipeError
from data_prep.recipe.explain import nearest
from pipeline.recipe import Recipe

# Keys of DeepSpeed 0.19.8 that say how it works, not what is trained.
DEEPSPEED_OWNS = (
    "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "communication_data_type", "prescale_gradients", "gradient_predivide_factor",
    "activation_checkpointing", "aio", "data_types", "compile", "torch_autocast",
    "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "flops_profiler",
    "comms_logger", "tensorboard", "wandb", "csv_monitor", "dump_state", "checkpoint",
    "use_node_local_storage", "zenflow", "disable_allgather",
)  # fmt: skip
# Keys that the recipe owns and the template may leave to it with "auto".
RECIPE_OWNS = {
    "train_batch_size": "batch.global_batch",
    "train_micro_batch_size_per_gpu": "batch.micro_batch",
    "gradient_accumulation_steps": "batch (derived)",
    "gradient_clipping": "optim.gradient_clip_norm",
    "zero_optimization.stage": "engine.zero_stage",
    "fp16.enabled": "precision.dtype",
    "fp16.loss_scale": "precision (always dynamic)",
    "fp16.initial_scale_power": "precision.initial_scale_power",
    "fp16.loss_scale_window": "precision.scale_window",
    "fp16.hysteresis": "precision.hysteresis",
    "fp16.min_loss_scale": "precision (always 1)",
    "bf16.enabled": "precision.dtype",
}
REFUSED = {
    "optimizer": "the recipe's optim section",
    "scheduler": "the recipe's optim section",
    "amp": "precision.dtype (removed from DeepSpeed)",
}


def template_path(recipe: Recipe) -> Path:
    """The JSON the recipe names, or the one of its ZeRO stage."""
    if recipe.engine.template:
        return Path(recipe.engine.template)
    root = Path(__file__).resolve().parents[2]
    return root / "ds_configs" / f"zero{recipe.engine.zero_stage}.json"


def read_template(path: Path) -> dict[str, Any]:
    """A template with only known keys. RecipeError names the file, the key and the nearest one."""
    try:
        template = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"engine.template: {path} does not exist") from None
    except OSError as error:
        raise RecipeError(f"engine.template: {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(template, dict):
        raise RecipeError(f"{path} holds {type(template).__name__}, expected an object")
    known = {*DEEPSPEED_OWNS, *(key.partition(".")[0] for key in RECIPE_OWNS)}
    for key in template:
        if key in REFUSED:
            raise RecipeError(f"{path}: {key!r} is owned by {REFUSED[key]}: remove it here")
        if key not in known:
            hint = nearest(key, known) or f"known keys are {', '.join(sorted(known))}"
            raise RecipeError(f"{path}: unknown DeepSpeed key {key!r}; {hint}")
    return template


def offloaded(recipe: Recipe) -> dict[str, str]:
    """What the recipe's template keeps off the device, `optimizer` and `param`, and where: `cpu`
    or `nvme`."""
    if recipe.engine.kind != "deepspeed":
        return {}
    zero = read_template(template_path(recipe)).get("zero_optimization")
    found = {}
    for name in ("optimizer", "param"):
        section = zero.get(f"offload_{name}") if isinstance(zero, dict) else None
        if isinstance(section, dict) and section.get("device") in ("cpu", "nvme"):
            found[name] = section["device"]
    return found


def resolve_dtype(recipe: Recipe, *, cuda_bf16: bool) -> str:
    """`precision.dtype` with auto resolved; `cuda_bf16` says whether a GPU with bf16 is there."""
    if recipe.precision.dtype != "auto":
        return recipe.precision.dtype
    return "bf16" if cuda_bf16 else "fp32"


def derive_deepspeed(recipe: Recipe, world_size: int, dtype: str) -> dict[str, Any]:
    """The complete DeepSpeed JSON for `world_size` devices.

    RecipeError when the template contradicts the recipe or the batch does not divide.
    """
    path = template_path(recipe)
    config = read_template(path)
    for dotted, value in _ours(recipe, world_size, dtype).items():
        _fill(config, dotted, value, path)
    offload = config["zero_optimization"].get("offload_optimizer") or {}
    if isinstance(offload, dict) and isinstance(offload.get("nvme_path"), str):
        # DeepSpeed names its files by rank alone: two runs would write over each other's.
        offload["nvme_path"] = str(Path(offload["nvme_path"]) / recipe.run.name)
    # Our own log and metrics take the place of DeepSpeed's printing.
    config.setdefault("steps_per_print", 2**31)
    return config


def _ours(recipe: Recipe, world_size: int, dtype: str) -> dict[str, Any]:
    precision = recipe.precision
    ours: dict[str, Any] = {
        "train_batch_size": recipe.batch.global_batch,
        "train_micro_batch_size_per_gpu": recipe.batch.micro_batch,
        "gradient_accumulation_steps": recipe.accumulation(world_size),
        "gradient_clipping": recipe.optim.gradient_clip_norm,
        "zero_optimization.stage": recipe.engine.zero_stage,
        "fp16.enabled": dtype == "fp16",
        "bf16.enabled": dtype == "bf16",
    }
    if dtype == "fp16":
        ours |= {
            "fp16.loss_scale": 0,
            "fp16.initial_scale_power": precision.initial_scale_power,
            "fp16.loss_scale_window": precision.scale_window,
            "fp16.hysteresis": precision.hysteresis,
            "fp16.min_loss_scale": 1,
        }
    return ours


def _fill(config: dict[str, Any], dotted: str, value: Any, path: Path) -> None:
    section, _, key = dotted.rpartition(".")
    place = config.setdefault(section, {}) if section else config
    if not isinstance(place, dict):
        raise RecipeError(f"{path}: {section}={place!r}: expected an object such as {{}}")
    found = place.get(key, "auto")
    if found != "auto" and (found != value or isinstance(found, bool) != isinstance(value, bool)):
        raise RecipeError(
            f"{path}: {dotted}={found!r} ({type(found).__name__}) contradicts the recipe's "
            f'{RECIPE_OWNS[dotted]}={value!r} ({type(value).__name__}): write "auto" there'
        )
    place[key] = value
