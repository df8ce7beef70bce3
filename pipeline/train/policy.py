"""What is done about a bad loss: warn, skip the batch, roll back, stop (the `watch` section).

Every decision is taken from numbers that all ranks share, so all ranks take it together.
"""

from __future__ import annotations

import math
import platform

from data_prep.errors import Diverged, RolledBack
from pipeline.clock import StepResult
from pipeline.ranks import from_rank0, gather_objects, rank
from pipeline.train.evidence import write_evidence
from pipeline.train.rollback import add_rollback, read_rollbacks
from pipeline.train.run import TrainingRun


def judge_loss(run: TrainingRun) -> StepResult | None:
    """Look at the loss before the optimizer steps; a result when the batch is to be discarded.
    Collective. RolledBack or Diverged where the recipe says so."""
    loss, watch = run.last_loss, run.recipe.watch
    if not math.isfinite(loss):
        reason = f"the loss is {loss} on {', '.join(_ranks_without_a_number(run))}"
        _respond(run, watch.nonfinite, reason)
        # Under fp16 a step with such a loss lowers the loss scale and applies nothing.
        return None if run.dtype == "fp16" else StepResult.OVERFLOW
    sigmas = run.health.deviations(loss)
    if watch.spike == "off" or sigmas <= watch.spike_sigma:
        return None
    run.monitor.log(run.clock, {"watch/spike_loss": loss, "watch/spike_sigma": sigmas})
    _respond(run, watch.spike, f"the loss is {loss:.4f}, {sigmas:.1f} deviations above the last "
             f"{watch.spike_window_steps}")  # fmt: skip
    return StepResult.SKIPPED if watch.spike == "skip" else None


def judge_result(run: TrainingRun, result: StepResult) -> None:
    """Look at how the step ended, before the clock moves. Collective. RolledBack or Diverged where
    the recipe says so, Diverged after `optim.max_skipped_steps` steps in a row that were of no use,
    whatever the ZeRO stage."""
    # Under fp16 a gradient too large for the loss scale is how the scale is found.
    broken = result is StepResult.OVERFLOW and run.dtype != "fp16"
    if broken and run.recipe.watch.nonfinite != "skip":
        _respond(run, run.recipe.watch.nonfinite, "the gradient is not finite")
    run.health.count(result, run.last_loss)
    useless = run.health.useless_in_a_row
    if useless >= run.recipe.optim.max_skipped_steps:
        _diverge(run, f"{useless} steps in a row gave a non-finite loss or gradient, or a loss far "
                 "too high (optim.max_skipped_steps)")  # fmt: skip


def _respond(run: TrainingRun, policy: str, reason: str) -> None:
    first, end = run.instances
    where = f"step {run.clock.applied}, instances {first} to {end}"
    if policy in ("warn", "skip"):
        said = "the batch is skipped" if policy == "skip" else "trained on all the same"
        run.monitor.say(f"warning: {where}: {reason}; {said}")
        return
    if policy == "stop":
        _diverge(run, reason)
    before = from_rank0(lambda: len(read_rollbacks(run.folder)))
    if before >= run.recipe.watch.max_rollbacks:
        _diverge(run, f"{reason}, after {before} rollbacks (watch.max_rollbacks)")
    _roll_back(run, reason)


def _roll_back(run: TrainingRun, reason: str) -> None:
    at, end = run.instances
    before = run.recipe.watch.rollback_batches * run.global_batch
    first = max(at - before, run.health.saved_at)
    path = write_evidence(run, reason, passed_over=[first, end])
    from_rank0(lambda: add_rollback(run.folder, (first, end), run.clock.applied, reason))
    raise RolledBack(
        f"rolled back at step {run.clock.applied}: {reason}; the same command goes on from "
        f"instance {run.health.saved_at}, the last checkpoint, and passes over {first} to {end} "
        f"({path})"
    )


def _diverge(run: TrainingRun, reason: str) -> None:
    path = write_evidence(run, reason)
    raise Diverged(
        f"{reason}, up to instance {run.instances[1]}: lower optim.lr, lengthen "
        f"optim.warmup_steps, or look at the text there; the last checkpoint is from before "
        f"({path})"
    )


def _ranks_without_a_number(run: TrainingRun) -> list[str]:
    mine = f"rank {rank()} ({platform.node()})" if not math.isfinite(run.own_loss) else ""
    # A sum over ranks can overflow though every part of it is a number.
    return [name for name in gather_objects(mine) if name] or ["no single rank, but their sum"]
