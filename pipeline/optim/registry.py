"""Optimizers by name: those of `torch.optim`, and with `pip install pytorch_optimizer` a hundred
more."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from data_prep.errors import RecipeError
from data_prep.recipe.explain import nearest

_TWICE = "it asks for the loss again within a step"
_SECOND = "it needs a second backward pass through the first, which ZeRO does not allow"
_AVERAGED = "it keeps two sets of weights and has to be told which one is looked at"
_INSIDE = "it updates weights inside the backward pass, where nothing is accumulated or reduced yet"
_MATRICES = "it takes matrices only, and a model has vectors too"
# Why these names are no choice here.
_UNFIT = {
    "lbfgs": _TWICE, "bsam": _TWICE, "alig": _TWICE, "sam": _TWICE,
    "sparseadam": "it takes sparse gradients only, and all gradients here are dense",
    "muon": _MATRICES, "adamuon": _MATRICES, "distributedmuon": _MATRICES, "adago": _MATRICES,
    "muonclip": _MATRICES, "normuon": _MATRICES,
    "adahessian": _SECOND, "sophiah": _SECOND,
    "schedulefreesgd": _AVERAGED, "schedulefreeadamw": _AVERAGED, "schedulefreeradam": _AVERAGED,
    "lomo": _INSIDE, "adalomo": _INSIDE,
}  # fmt: skip

# Every weight for itself, whatever tensor it lies in; torch's are so but for Adafactor. Others look
# at a whole matrix (a norm of a layer, a factor of rows and columns) or at the whole model.
_ELEMENTWISE = {
    "adabelief", "adabound", "adamod", "adan", "ademamix", "adopt", "aggmo", "avagrad", "diffgrad",
    "laprop", "lion", "madgrad", "padam", "qhadam", "qhm", "sgdw", "signsgd", "tiger", "yogi",
}  # fmt: skip


def optimizer_class(name: str, zero_stage: int = 0) -> Any:
    """The class of that name, in any case. RecipeError for one that is unknown, does not fit here
    or cannot work on the flat slices that ZeRO makes of all parameters."""
    key = name.lower()
    if key in _UNFIT:
        raise RecipeError(f"optim.name={name} cannot train here: {_UNFIT[key]}; use adamw")
    own = _of_torch()
    made = own[key] if key in own else _of_library(name, key, own)
    if zero_stage > 0 and key not in _ELEMENTWISE and (key not in own or key == "adafactor"):
        raise RecipeError(
            f"optim.name={name} with engine.zero_stage={zero_stage}: it is not known to work on "
            "every weight for itself, and ZeRO hands an optimizer flat slices that run across "
            "matrices, so it would silently compute something else; set engine.zero_stage=0"
        )
    return made


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
