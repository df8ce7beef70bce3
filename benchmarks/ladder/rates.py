"""The batch ladder of a model: the rate of each batch by successive halving, and by each rule.

Every batch tries the same rates and those that the rules predict from the reference's; after a
quarter of the bytes the best two go on to half, the better of them to the end. All stop on the
schedule of the whole run, and those that go on resume from their checkpoints. What the rules
predict is trained to the end too, as part of an ordinary study with its evaluations.
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks.ladder.arms import REFERENCE_BYTES, Scale, Study, curve, train
from data_prep.errors import PipelineError
from pipeline.recipe import load_recipe
from pipeline.report.advise import advise
from pipeline.run_folder import RunFolder
from pipeline.stages.study import run_study

RULES = ("none", "sqrt", "linear")
UNIFORM_BITS = 8.0  # of a byte, all being equally likely
STABLE_BITS = 0.5  # a rate is stable if it ends its first rung so near the best of its batch


def halve(study: Study, factor: int, rates: list[float]) -> tuple[str, dict[str, float]]:
    """The arm that is best after the last rung, and what all rates had after the first."""
    arms, first = add_rates(study, factor, rates), {}
    for share, keep in study.scale.rungs:
        found = {arm: train(study.recipe(arm, share=share)) for arm in arms}
        if not first:
            found |= _climb(study, factor, share, found)
            first = found
        arms = sorted(found, key=found.__getitem__)[:keep]
    return arms[0], first


def _climb(study: Study, factor: int, share: float, found: dict[str, float]) -> dict[str, float]:
    """What twice the largest stable rate has, and twice that, up to the first not stable."""
    more: dict[str, float] = {}
    rate = largest_stable({rate_of(study, arm): bits for arm, bits in found.items()})
    for _ in range(study.scale.doublings):
        rate *= 2
        [arm] = add_rates(study, factor, [rate])
        more[arm] = train(study.recipe(arm, share=share))
        if not more[arm] <= min(found.values()) + STABLE_BITS or math.isinf(more[arm]):
            break
    return more


def largest_stable(first: dict[float, float]) -> float:
    """Of rates and the losses after a rung, the highest rate that is near the best."""
    limit = min(first.values()) + STABLE_BITS
    return max(rate for rate, bits in first.items() if bits <= limit)


def finish(study: Study, arm: str, seed: int = 1) -> float:
    """Bits per byte at the end of a whole run; infinite for one that is stopped after the first
    rung because it is worse than knowing nothing."""
    if train(study.recipe(arm, seed, share=study.scale.rungs[0][0])) > UNIFORM_BITS:
        return math.inf
    return train(study.recipe(arm, seed))


def rate_of(study: Study, arm: str) -> float:
    """The peak rate of an arm."""
    return study.recipe(arm).optim.lr


def rule_rates(rate: float, factor: int) -> dict[str, float]:
    """What each rule makes of the reference's rate, by the recipe's own key."""
    rates = {}
    for rule in RULES:
        given = [f"optim.lr={rate}", f"optim.scaling={rule}",
                 f"optim.reference_tokens={REFERENCE_BYTES}"]  # fmt: skip
        section = load_recipe("recipes/large_batch_mlstm.yaml", given).optim
        rates[rule] = section.peak_lr(factor * REFERENCE_BYTES)
    return rates


def add_rates(study: Study, factor: int, rates: list[float]) -> list[str]:
    """An arm for each rate at a batch. Two micro-batches at least show the gradient's noise."""
    parts = {1: 1, 8: 2}.get(factor, 4)
    every = max(1, study.scale.steps(factor) // 80)
    noise = [f"optim.noise_every_steps={every}"] if parts > 1 else []
    return [
        study.add(f"x{factor}_{rate:.4g}", factor, f"optim.lr={rate}", *noise, parts=parts)
        for rate in sorted({float(f"{rate:.4g}") for rate in rates})
    ]


def ladder(model: str, scale: Scale) -> dict[str, Any]:
    """Train it and say what came out, batch by batch."""
    warmup = f"optim.warmup_tokens={scale.total_bytes // 32}"  # zero to peak, in all arms alike
    study = Study(f"ladder_{model}", model, scale, shared=[warmup])
    best, first = halve(study, 1, list(scale.rates))
    reference = rate_of(study, best)
    rungs = {1: {"chosen": best, "rules": {rule: best for rule in RULES}, "first": first}}
    for factor in scale.factors[1:]:
        rules = rule_rates(reference, factor)
        best, first = halve(study, factor, [*scale.rates, *rules.values()])
        names = {rule: f"x{factor}_{rate:.4g}" for rule, rate in rules.items()}
        rungs[factor] = {"chosen": best, "rules": names, "first": first}
    _finish(study, rungs)
    for rung in rungs.values():  # an early loss can mislead: the end decides
        ends = [rung["chosen"], *rung["rules"].values()]
        rung["best"] = min(ends, key=lambda arm: finish(study, arm))
    return {
        "reference_rate": reference,
        "batches": {factor: _rung(study, factor, rung) for factor, rung in rungs.items()},
    }


def _finish(study: Study, rungs: dict[int, dict[str, Any]]) -> None:
    """All end points, in processes that start fast; then the study, which finds them trained."""
    ends = dict.fromkeys(a for r in rungs.values() for a in (r["chosen"], *r["rules"].values()))
    ended = [arm for arm in ends if math.isfinite(finish(study, arm))]
    if study.scale.evaluates:
        try:
            run_study(study.write(ended, ["prepare", "pretrain", "export", "evaluate"]))
        except PipelineError as error:
            print(f"{study.name}: {error}", flush=True)


def _rung(study: Study, factor: int, rung: dict[str, Any]) -> dict[str, Any]:
    """A batch as plain values."""
    first = {rate_of(study, arm): bits for arm, bits in rung["first"].items()}
    return {
        "bytes_per_update": factor * REFERENCE_BYTES,
        "updates": study.scale.steps(factor),
        "first_rung": sorted(first.items()),
        "largest_stable_rate": largest_stable(first),
        "chosen": _end(study, rung["chosen"]),
        "best": _end(study, rung["best"]),
        "rules": {rule: _end(study, arm) for rule, arm in rung["rules"].items()},
        **_noise(study, rung["best"]),
    }


def _end(study: Study, arm: str) -> dict[str, Any]:
    """An end point: its rate, losses against bytes, and what the evaluation found."""
    recipe = study.recipe(arm)
    folder = RunFolder(recipe.run_folder)
    sentiment = folder.read_json(folder.evals / "sentiment.json") or {}
    heldout = folder.read_json(folder.evals / "heldout.json") or {}
    return {
        "rate": recipe.optim.lr,
        "bits": finish(study, arm),
        "curve": [(step * recipe.batch.tokens, bits) for step, bits in curve(recipe)],
        "test_bits": heldout.get("bits_per_byte"),
        "sentiment": sentiment.get("accuracy"),
        "sentiment_interval": sentiment.get("interval"),
        "majority": sentiment.get("majority_accuracy"),
    }


def _noise(study: Study, arm: str) -> dict[str, Any]:
    """The noise scale along the run of the best rate, and what `advise` says of it."""
    recipe = study.recipe(arm)
    if not recipe.optim.noise_every_steps:
        return {}
    lines = RunFolder(recipe.run_folder).read_metrics()
    key = "noise/scale_tokens"
    return {
        "noise": [(line["train/tokens"], line[key]) for line in lines if key in line],
        "advice": advise(recipe.run_folder),
    }
