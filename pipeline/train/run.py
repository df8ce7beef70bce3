"""A run in training: what the loop works with, built from a recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_prep.shards import Prepared
from pipeline.clock import Clock, StepResult
from pipeline.data.loader import Batch, Loader
from pipeline.data.order import LaneOrder, ShuffledOrder
from pipeline.data.units import loss_units
from pipeline.optim.schedule import learning_rate
from pipeline.protocols import Engine, StepPlugin
from pipeline.ranks import agree, from_rank0, rank, world_size
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.seeds import derive_key
from pipeline.train import state
from pipeline.train.evaluation import Evaluator
from pipeline.train.flops import peak_flops
from pipeline.train.health import Health
from pipeline.train.lanes import LaneStates
from pipeline.train.lock import RunLock
from pipeline.train.meters import Meters
from pipeline.train.module import TrainModule
from pipeline.train.monitor import Monitor
from pipeline.train.pace import Pace
from pipeline.train.rollback import skipped_ranges
from pipeline.train.saver import Saver
from pipeline.train.stop import StopRequest
from pipeline.train.watchdog import Watchdog


class TrainingRun:
    """Everything the loop touches. Building it is collective."""

    def __init__(
        self,
        recipe: Recipe,
        prepared: Prepared,
        module: TrainModule,
        engine: Engine,
        plugins: list[StepPlugin],
        dtype: str,
        resume_from: Path | None,
        lock: RunLock | None,
    ) -> None:
        self.recipe, self.module, self.engine, self.plugins = recipe, module, engine, plugins
        self.folder = RunFolder(recipe.run_folder)
        self.clock, self.meters = Clock(), Meters()
        self.dtype = dtype
        self._lock = lock  # rank 0's
        self.prepared = prepared
        self.skip = [(first, end) for first, end in recipe.batch.skip_instances]
        self._train_split = prepared.split("train")
        self.lanes = LaneStates(module.backbone, recipe.batch.global_batch, engine.device)
        self.loader = self._make_loader()
        self.evaluator = Evaluator(
            prepared.split("validation"), recipe.batch.window_tokens, recipe.eval.batch,
            recipe.eval.max_tokens,
        )  # fmt: skip
        self.forward_flops = module.backbone.flops(recipe.batch.window_tokens)
        self.health = Health(recipe.watch.spike_window_steps)
        self.pace = Pace(engine.device, recipe.engine.zero_stage)
        # Dropout must differ between ranks, weights must not: they were made before this.
        torch.manual_seed(derive_key(recipe.run.seed, "rank", rank()) % 2**63)
        self.saver = Saver(self)
        if resume_from is not None:
            self.saver.restore(resume_from)
        self.skip = sorted({*self.skip, *from_rank0(lambda: skipped_ranges(self.folder))})
        self.monitor = agree(
            lambda: Monitor(self.folder, self.clock, recipe.run.steps, recipe.run.loggers)
        )
        self.stop = StopRequest(self.folder.stop_file, recipe.run.stop_after_minutes)
        self.watchdog = Watchdog(self.folder.logs, self.clock, 60 * recipe.watch.hang_minutes)
        self.stopping = 0
        self.last_loss = self.own_loss = math.nan
        self._peak = peak_flops(engine.device, dtype)
        self._mark = self._meter_readings()

    def _make_loader(self) -> Loader:
        batch, split = self.recipe.batch, self._train_split
        order: ShuffledOrder | LaneOrder
        if self.module.backbone.recurrent:
            order = LaneOrder(
                split.tokens, batch.window_tokens, self.recipe.run.seed, batch.global_batch
            )
        else:
            order = ShuffledOrder(split.tokens, batch.window_tokens, self.recipe.run.seed)
        return Loader(split, order, batch.micro_batch, rank(), world_size())

    @property
    def layout(self) -> dict[str, Any]:
        """How the run is spread and computed: what may change when it is resumed."""
        return {**state.layout(self.recipe, world_size()), "dtype": self.dtype}

    def close(self) -> None:
        """Leave the run's folder to others."""
        self.loader.close()
        self.monitor.close()
        if self._lock is not None:
            self._lock.release()

    # What a step needs ----------------------------------------------------------------------

    def begin_step(self) -> None:
        """Note which step begins, for whoever looks after a crash."""
        self.monitor.at(self.clock.applied, *self.instances)

    def next_batch(self) -> Batch:
        self.watchdog.beat("waiting for data")
        self.pace.begin()
        batch = self.loader.at(self.clock.instances, self.global_batch)
        self.pace.loaded()
        return batch

    def learning_rate(self, applied: int) -> float:
        """Of the update after `applied` updates."""
        recipe = self.recipe
        return learning_rate(recipe.optim, recipe.batch, applied, recipe.run.steps)

    @property
    def global_batch(self) -> int:
        """Instances of the step to come."""
        return self.recipe.batch.global_batch_at(self.clock.applied)

    @property
    def instances(self) -> tuple[int, int]:
        """[first, end) of the step to come."""
        return self.clock.instances, self.clock.instances + self.global_batch

    def is_skipped(self, instance: int) -> bool:
        """Whether the global batch at `instance` touches a range that is to be passed over."""
        last = instance + self.global_batch
        return any(first < last and instance < end for first, end in self.skip)

    def share(self, totals: Tensor) -> None:
        """Sum loss and tokens over ranks and agree on what one rank alone may know: a request to
        stop, a file still being written. Collective."""
        self.watchdog.beat("summing the loss over ranks")
        vector = torch.zeros(5, device=self.engine.device)
        vector[:2] = totals
        if request := self.stop.pending():
            vector[1 + request] = 1
        vector[4] = self.saver.writing
        if world_size() > 1:
            dist.all_reduce(vector)
        loss_sum, count, stop, interrupt, writing = vector.tolist()
        own_sum, own_count = totals.tolist()
        self.own_loss = own_sum / own_count if own_count else math.nan
        self.last_loss = loss_sum / count if count else math.nan
        self.stopping = 2 if interrupt else 1 if stop else 0
        self.saver.all_written = not writing

    def count(self, tokens: int) -> None:
        """Add one global batch to the meters. Backward is counted as twice the forward."""
        head, forward = self.module.head, self.forward_flops
        counted = forward._replace(head=head.flops(self.clock)).times(3)
        for plugin in self.plugins:
            counted = plugin.count(self.clock, counted)
        self.meters.count(tokens, 3 * (forward.total + head.dense_flops()), counted)

    # Logging and evaluation -------------------------------------------------------------------

    def log_step(self, result: StepResult) -> None:
        """Metrics of the step that just ended, and the console line. Collective."""
        tokens = self.meters.tokens
        tokens_before, trained_before, flops_before, iteration_before = self._mark
        seconds = max(self.meters.train_s - trained_before, 1e-9)
        paces = self.pace.exchange(seconds)
        flops_rate = (self.meters.flops_counted - flops_before) / seconds
        rate = (tokens - tokens_before) / seconds
        iterations = self.clock.iteration - iteration_before
        last = max(self.clock.applied - 1, 0)
        metrics: dict[str, Any] = {
            **self._loss_metrics(),
            "train/grad_norm": self.engine.grad_norm if result is StepResult.APPLIED else None,
            "train/learning_rate": self.learning_rate(last),
            "train/loss_scale": self.engine.loss_scale if self.dtype == "fp16" else None,
            "train/skipped_steps": self.meters.skipped_steps,
            **self.meters.metrics(),
            "train/epoch": self.loader.order.epoch(self.clock.instances),
            "batch/global_tokens": self.recipe.batch.window_tokens
            * self.recipe.batch.global_batch_at(last),
            "perf/tokens_per_sec": rate,
            "perf/tokens_per_sec_per_gpu": rate / world_size(),
            "perf/data_wait_ms": 1000
            * max(each.data_wait_s for each in paces)
            / max(iterations, 1),
            "perf/data_wait_share": max(each.data_wait_s / each.step_s for each in paces),
        }
        if self._peak is not None:
            metrics["perf/mfu"] = flops_rate / (self._peak * world_size())
        if self.engine.device.type == "cuda":
            metrics["mem/max_allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
        for plugin in self.plugins:
            metrics |= plugin.metrics(self.clock)
        if metrics["train/grad_norm"] is not None and not math.isfinite(metrics["train/grad_norm"]):
            metrics["train/grad_norm"] = None
        self.monitor.log(self.clock, metrics, result=result.value)
        if result is StepResult.APPLIED:
            left = self.recipe.run.steps - self.clock.applied
            step_s = self.meters.train_s / max(self.clock.iteration, 1)
            status = [plugin.status(self.clock) for plugin in self.plugins]
            self.monitor.progress(self.clock, metrics, left * step_s, [s for s in status if s])
        else:
            self.monitor.say(
                f"step {self.clock.applied}: {result.value} at instance {self.clock.instances}"
            )
        for warning in self.pace.warnings(paces):
            self.monitor.say(warning)
        self._mark = self._meter_readings()

    def _meter_readings(self) -> tuple[int, float, float, int]:
        """What rates are taken from: tokens, seconds, counted FLOPs, global batches."""
        meters = self.meters
        return meters.tokens, meters.train_s, meters.flops_counted, self.clock.iteration

    def _loss_metrics(self) -> dict[str, float]:
        """The step's loss in nats per token and per byte; nothing for a loss that is no number."""
        if not math.isfinite(self.last_loss):
            return {}
        if not self.module.head.has_probabilities:
            return {"train/loss": self.last_loss}
        units = loss_units(self.last_loss, self._train_split)
        return {
            "train/loss": self.last_loss,
            "train/loss_per_byte": math.log(2) * units["bits_per_byte"],
            "train/bpc": units["bits_per_character"],
            "train/ppl": units["ppl_per_token"],
        }

    def evaluate(self) -> dict[str, float]:
        """Held-out loss; logged. Collective."""
        metrics = self.evaluator.run(self.engine, self.module, self.watchdog.beat)
        self.monitor.log(self.clock, metrics | self.meters.metrics())
        said = f"step {self.clock.applied} | validation: loss {metrics['eval/loss']:.4f}"
        if self.module.head.has_probabilities:
            said += f" | {metrics['eval/bits_per_byte']:.4f} bits/byte"
            said += f" | {metrics['eval/bpc']:.4f} bits/character"
        self.monitor.say(said)
        return metrics
