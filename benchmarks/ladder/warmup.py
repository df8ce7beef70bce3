"""Four ways to begin a large batch under SGD with momentum, after Goyal et al. 2017, section 5.1.

There: error 23.60 at 256 images; at 8,192 by the linear rule 23.74 with a gradual warm-up, 24.84
with none, 25.88 with a constant one. Here: bits per byte at the reference batch at its best rate,
and at larger ones by the linear rule: `linear` from that rate, `fitted` from one so low that the
rule ends at the best rate of that batch.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from benchmarks.ladder.arms import REFERENCE_BYTES, Scale, Study, curve
from benchmarks.ladder.rates import add_rates, finish, halve, largest_stable, rate_of

_SGD = ["optim.name=sgd", "optim.options={momentum: 0.9, nesterov: true}",
        "optim.gradient_clip_norm=0"]  # fmt: skip
_WAYS = {"gradual": "gradual", "none": "zero", "constant": "constant"}


def warmups(model: str, scale: Scale) -> dict[str, Any]:
    """Find SGD's rate of each batch, then train every way over the seeds."""
    study = Study(f"warmup_{model}", model, scale, shared=_SGD)
    rates, first = {}, {}
    for factor in scale.factors:
        best, found = halve(study, factor, list(scale.sgd_rates))
        rates[factor] = rate_of(study, best)
        first[factor] = sorted((rate_of(study, arm), bits) for arm, bits in found.items())
    arms = [add_rates(study, 1, [rates[1]])[0]]
    for factor in scale.factors[1:]:
        arms += _ways(study, factor, rates[1], "linear")
        arms += _ways(study, factor, rates[factor] / factor, "fitted")
    for seed in scale.seeds:  # every arm in turn, so that what the machine does falls on all
        for arm in arms:
            finish(study, arm, seed)
    study.write(arms, ["prepare", "pretrain"])
    return {
        "rates": rates,
        "first_rung": first,
        "largest_stable_rate": {
            factor: largest_stable(dict(found)) for factor, found in first.items()
        },
        "arms": {arm: _arm(study, arm) for arm in arms},
    }


def _ways(study: Study, factor: int, rate: float, name: str) -> list[str]:
    """The three beginnings at a batch, each a sixteenth of the bytes long, as Goyal's 5 epochs."""
    rule = [f"optim.lr={rate}", "optim.scaling=linear", f"optim.reference_tokens={REFERENCE_BYTES}"]
    arms = []
    for way, warmup in _WAYS.items():
        length = 0 if way == "none" else study.scale.total_bytes // 16
        given = [f"optim.warmup_tokens={length}"] if length else []
        arm = f"x{factor}_{name}_{way}"
        arms.append(study.add(arm, factor, *rule, f"optim.warmup={warmup}", *given))
    return arms


def _arm(study: Study, arm: str) -> dict[str, Any]:
    """Mean and deviation over the seeds that did not diverge, and how many did."""
    recipes = [study.recipe(arm, seed) for seed in study.scale.seeds]
    bits = [finish(study, arm, seed) for seed in study.scale.seeds]
    finite = [value for value in bits if math.isfinite(value)]
    tokens = recipes[0].batch.tokens
    return {
        "peak_rate": recipes[0].optim.peak_lr(tokens),
        "bits": bits,
        "diverged": len(bits) - len(finite),
        "mean": statistics.fmean(finite) if finite else None,
        "deviation": statistics.stdev(finite) if len(finite) > 1 else None,
        "curves": [[(step * tokens, value) for step, value in curve(r)] for r in recipes],
    }
