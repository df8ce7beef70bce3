"""The training loop. One global batch reads as one paragraph: `train_step`.

Schedules move on applied steps; the data position and the lane states move with every global batch,
whatever became of it. Every decision that could differ between ranks (stop, overflow) is taken from
numbers that have been reduced over all of them.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from time import perf_counter

import torch

from data_prep.errors import StoppedAndSaved
from pipeline.clock import StepResult
from pipeline.data.loader import Batch
from pipeline.train.policy import judge_loss, judge_result
from pipeline.train.replicas import check_replicas
from pipeline.train.run import TrainingRun
from pipeline.train.stop import INTERRUPT


def train(run: TrainingRun) -> None:
    """Train until `run.steps` updates are applied. Saves at its cadence and at the end. Collective.

    StoppedAndSaved or KeyboardInterrupt after a request to stop, with the state on disk; RolledBack
    or Diverged as the `watch` section says, which leave weights and checkpoints as they were.
    """
    recipe = run.recipe
    while run.clock.applied < recipe.run.steps:
        began = perf_counter()
        result = train_step(run)
        run.meters.train_s += perf_counter() - began
        run.saver.finish_if_written()
        applied = run.clock.applied if result is StepResult.APPLIED else 0
        if not applied or _due(applied, recipe.run.log_every_steps, recipe.run.steps):
            run.log_step(result)
        if _due(applied, recipe.watch.replicas_every_steps, recipe.run.steps):
            check_replicas(run)
        if _due(applied, recipe.eval.every_steps, recipe.run.steps):
            run.evaluate()
        if _due(applied, recipe.checkpoint.every_steps, recipe.run.steps) and not run.stopping:
            run.saver.save()
        if run.stopping and run.clock.applied < recipe.run.steps:
            _stop(run)
    if run.stopping:  # asked for in the very last step: there is nothing left to stop
        run.saver.save()
    run.saver.finish()


def train_step(run: TrainingRun) -> StepResult:
    """One global batch: forward and backward of every micro-batch, then one optimizer step."""
    clock, engine = run.clock, run.engine
    run.begin_step()
    if run.is_skipped(clock.instances):
        run.lanes.zero()
        run.share(torch.zeros(2, device=engine.device))
        return _advance(run, StepResult.SKIPPED)
    batch = run.next_batch()
    run.module.head.begin_step(clock)
    for plugin in run.plugins:
        plugin.before_iteration(engine, clock)
    run.health.enter([run.module.head.phase, *(plugin.phase for plugin in run.plugins)])
    engine.set_lr(run.learning_rate(clock.applied))
    twice = any(plugin.passes > 1 for plugin in run.plugins)
    states = run.lanes.copy() if twice else None
    run.share(accumulate(run, batch))
    verdict = judge_loss(run)
    if verdict:
        engine.discard()
    elif twice and math.isfinite(run.last_loss):
        _second_pass(run, batch, states)
    result = verdict or _apply(run)
    if result is StepResult.OVERFLOW:
        run.lanes.drop_nonfinite()
    run.module.head.after_step(result)
    for plugin in run.plugins:
        plugin.after_step(engine, clock, result)
    judge_result(run, result)
    run.count(batch.global_tokens)
    return _advance(run, result)


def accumulate(run: TrainingRun, batch: Batch) -> torch.Tensor:
    """Backward of all micro-batches; the summed loss in nats and the tokens of this rank."""
    totals = torch.zeros(2, device=run.engine.device)
    last = len(batch.micro_batches) - 1
    for index, cpu_micro in enumerate(batch):
        run.watchdog.beat(f"in micro-batch {index + 1} of {last + 1}")
        micro = cpu_micro.to(run.engine.device)
        with nullcontext() if index == last else run.engine.no_sync():
            loss_sum, count, state = run.engine.forward(
                micro.inputs, micro.targets, micro.weights, run.lanes.get(micro.rows), micro.resets
            )
            if index == 0:
                run.pace.computed()
            # Divided by the tokens of the whole global batch: accumulation and ranks change
            # nothing.
            run.engine.backward(loss_sum / batch.global_tokens, last=index == last)
        run.lanes.put(micro.rows, state)
        totals += torch.stack([loss_sum.detach(), count.detach()])
    return totals


def _second_pass(run: TrainingRun, batch: Batch, states: torch.Tensor | None) -> None:
    """The same batch from the same lane states, where a plug-in has set other weights for it."""
    if any([plugin.second_pass(run.engine, run.clock) for plugin in run.plugins]):
        run.engine.discard()
        reached = run.lanes.copy()
        run.lanes.restore(states)
        accumulate(run, batch)
        run.lanes.restore(reached)  # of the weights that the loss is reported for


def _apply(run: TrainingRun) -> StepResult:
    """Hand the reduced gradients to head and plug-ins, then to the optimizer."""
    run.module.head.finish_accumulation(run.engine)
    verdicts = [plugin.after_backward(run.engine, run.clock) for plugin in run.plugins]
    if StepResult.TOPOLOGY in verdicts:
        run.engine.discard()
        return StepResult.TOPOLOGY
    return run.engine.step()


def _advance(run: TrainingRun, result: StepResult) -> StepResult:
    run.clock.advance(result, run.global_batch)
    if result is not StepResult.APPLIED:
        run.meters.skipped_steps += 1
    return result


def _due(applied: int, every: int, total: int) -> bool:
    """True at multiples of `every` applied steps and at the end; never for a step not applied."""
    return applied > 0 and (applied == total or (every > 0 and applied % every == 0))


def _stop(run: TrainingRun) -> None:
    run.saver.save()
    run.saver.finish()
    run.monitor.say(
        f"stopped at step {run.clock.applied}: {run.stop.reason or 'asked by another rank'}"
    )
    if run.stopping == INTERRUPT:
        raise KeyboardInterrupt
    raise StoppedAndSaved(
        f"stopped at step {run.clock.applied}, checkpoint saved; run the same command to go on"
    )
