"""Optimizers by name: those of `torch.optim`, and of libraries that are optional: a hundred more of
pytorch_optimizer, and those of bitsandbytes (`bnb_adamw8bit`) and torchao (`ao_adamw8bit`), whose
states have 4 or 8 bits."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch

from data_prep.errors import RecipeError
from data_prep.recipe.explain import nearest

_TWICE = "it asks for the loss again within a step"
_CLIMBS = "it goes through a batch twice, which optim.sam_rho does around any optimizer"
_SECOND = "it needs a second backward pass through the first, which ZeRO does not allow"
_AVERAGED = "it keeps two sets of weights and has to be told which one is looked at"
_INSIDE = "it updates weights inside the backward pass, where nothing is accumulated or reduced yet"
_TOO_SOON = "it makes its state before weights are placed and divided; rmsprop and adamw do not"
_MATRICES = "it takes matrices only; muon has AdamW beside it for the rest"
_NO_RATIO = "its 8-bit update leaves out the ratio of norms that is the method"
# Why these names are no choice here.
_UNFIT = {
    "adagrad": _TOO_SOON,
    "lbfgs": _TWICE, "bsam": _TWICE, "alig": _TWICE,
    "sam": _CLIMBS, "gsam": _CLIMBS, "wsam": _CLIMBS, "looksam": _CLIMBS, "friendlysam": _CLIMBS,
    "sparseadam": "it takes sparse gradients only, and all gradients here are dense",
    "adamuon": _MATRICES, "distributedmuon": _MATRICES, "adago": _MATRICES,
    "muonclip": _MATRICES, "normuon": _MATRICES,
    "adahessian": _SECOND, "sophiah": _SECOND,
    "schedulefreesgd": _AVERAGED, "schedulefreeadamw": _AVERAGED, "schedulefreeradam": _AVERAGED,
    "lomo": _INSIDE, "adalomo": _INSIDE,
    "bnb_lamb8bit": _NO_RATIO, "bnb_lars8bit": _NO_RATIO,
}  # fmt: skip

# Every weight for itself, whatever tensor it lies in; torch's are so but for two. Others look at a
# whole matrix (a norm of a layer, a factor of rows and columns) or at the whole model.
_OF_MATRICES = {"adafactor", "muon"}
_ELEMENTWISE = {
    "adabelief", "adabound", "adamod", "adan", "ademamix", "adopt", "aggmo", "avagrad", "diffgrad",
    "laprop", "lion", "madgrad", "padam", "qhadam", "qhm", "sgdw", "signsgd", "tiger", "yogi",
}  # fmt: skip

# Optional libraries of optimizers with small states: how they are imported, and the endings of the
# names there.
_SMALL_STATES = {
    "bnb_": ("bitsandbytes", lambda: importlib.import_module("bitsandbytes.optim"), ("8bit",)),
    "ao_": (
        "torchao", lambda: importlib.import_module("torchao.optim"), ("8bit", "4bit", "fp8"),
    ),
}  # fmt: skip


def has_small_states(name: str) -> bool:
    """Whether an optimizer of that name keeps rounded blocks, which nothing else can read."""
    return name.lower().startswith(tuple(_SMALL_STATES))


def optimizer_class(name: str, zero_stage: int = 0) -> Any:
    """The class of that name, in any case. RecipeError for one that is unknown, does not fit here
    or cannot work on the flat slices that ZeRO makes of all parameters."""
    key = name.lower()
    if key in _UNFIT:
        raise RecipeError(f"optim.name={name} cannot train here: {_UNFIT[key]}; use adamw")
    own = _of_torch()
    if has_small_states(key):
        made = _of_small_states(name, key)
    else:
        made = own[key] if key in own else _of_library(name, key, own)
    if zero_stage > 0 and has_small_states(key):
        raise RecipeError(
            f"optim.name={name} with engine.zero_stage={zero_stage}: its states are rounded in "
            "blocks that a checkpoint cannot put back where ranks divide them; set "
            "engine.zero_stage=0 or engine.kind=ddp"
        )
    if zero_stage > 0 and not _is_elementwise(key, own):
        raise RecipeError(
            f"optim.name={name} with engine.zero_stage={zero_stage}: it is not known to work on "
            "every weight for itself, and ZeRO hands an optimizer flat slices that run across "
            "matrices, so it would silently compute something else; set engine.zero_stage=0, or "
            "engine.kind=ddp"
        )
    return made


def _is_elementwise(key: str, own: dict[str, Any]) -> bool:
    return key in _ELEMENTWISE or (key in own and key not in _OF_MATRICES)


def settings_of(made: Any, given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What of `given` the constructor of class `made` takes in that form, and all `options`.
    RecipeError for an option that it does not know."""
    known = inspect.signature(made).parameters
    for option in options:
        if option not in known or option in ("params", "lr"):
            hint = nearest(option, known) or f"it takes {', '.join(list(known)[1:])}"
            raise RecipeError(f"optim.options.{option}: unknown to {made.__name__}; {hint}")
    # Some have three betas, or two epsilons: they keep their own.
    fits = {k: v for k, v in given.items() if k in known and _alike(known[k].default, v)}
    return fits | options


def _alike(default: Any, value: Any) -> bool:
    lengths = [len(found) if isinstance(found, tuple) else 0 for found in (default, value)]
    return lengths[0] == lengths[1]


def _of_torch() -> dict[str, Any]:
    found = {name.lower(): getattr(torch.optim, name) for name in torch.optim.__all__}
    return {
        name: made
        for name, made in found.items()
        if isinstance(made, type) and made is not torch.optim.Optimizer and name not in _UNFIT
    }


def _of_small_states(name: str, key: str) -> Any:
    prefix = next(prefix for prefix in _SMALL_STATES if key.startswith(prefix))
    library, load, endings = _SMALL_STATES[prefix]
    try:
        module = load()
    except ImportError:
        raise RecipeError(
            f"optim.name={name} is of {library}, which is not installed: pip install {library}"
        ) from None
    found = {
        prefix + attribute.lower(): made
        for attribute, made in vars(module).items()
        if isinstance(made, type) and attribute.lower().endswith(endings)
    }
    if key not in found:
        hint = nearest(key, found) or f"it has {', '.join(sorted(found))}"
        raise RecipeError(f"optim.name={name} is none of {library}; {hint}")
    return found[key]


def _of_library(name: str, key: str, own: dict[str, Any]) -> Any:
    try:
        import pytorch_optimizer
    except ImportError:
        hint = nearest(key, own) or f"torch.optim has {', '.join(sorted(own))}"
        raise RecipeError(
            f"optim.name={name} is none of torch.optim; {hint}. pytorch_optimizer has a hundred "
            "more: pip install pytorch_optimizer"
        ) from None
    names = pytorch_optimizer.get_supported_optimizers()
    if key not in names:
        hint = nearest(key, [*own, *names]) or f"torch.optim has {', '.join(sorted(own))}"
        raise RecipeError(f"optim.name={name} is none of torch.optim or pytorch_optimizer; {hint}")
    return pytorch_optimizer.load_optimizer(key)
