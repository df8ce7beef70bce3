"""A run in training: what the loop works with, built from a recipe, saved and restored."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
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
from pipeline.ranks import barrier, from_rank0, rank, world_size
from pipeline.recipe import Recipe
from pipeline.run_folder import RunFolder
from pipeline.seeds import derive_key
from pipeline.train import checkpoint, state
from pipeline.train.evaluation import Evaluator
from pipeline.train.flops import peak_flops
from pipeline.train.lanes import LaneStates
from pipeline.train.module import TrainModule
from pipeline.train.monitor import Monitor
from pipeline.train.stop import StopRequest


@dataclass
class Meters:
    """Sums over the whole run; they survive a resume."""

    train_s: float = 0.0  # without evaluation and saving
    tokens: int = 0
    skipped_steps: int = 0
    flops_dense: float = 0.0
    flops_counted: float = 0.0  # the sum of the three below
    flops_blocks: float = 0.0
    flops_attention: float = 0.0
    flops_head: float = 0.0

    def metrics(self) -> dict[str, float]:
        """What every metrics line carries: how far the run has come and what it has cost."""
        return {
            "train/tokens": self.tokens,
            "flops/dense": self.flops_dense,
            "flops/counted": self.flops_counted,
            "flops/blocks": self.flops_blocks,
            "flops/attention": self.flops_attention,
            "flops/head": self.flops_head,
            "time/train_s": self.train_s,
        }

    def count(self, run: TrainingRun, tokens: int) -> None:
        """Add one global batch. Backward is counted as twice the forward."""
        head, forward = run.module.head, run.forward_flops
        self.tokens += tokens
        self.flops_dense += 3 * tokens * (forward.total + head.dense_flops())
        counted = forward._replace(head=head.flops(run.clock)).times(3)
        for plugin in run.plugins:
            counted = plugin.count(run.clock, counted)
        self.flops_counted += tokens * counted.total
        self.flops_blocks += tokens * counted.blocks
        self.flops_attention += tokens * counted.attention
        self.flops_head += tokens * counted.head


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
    ) -> None:
        self.recipe, self.module, self.engine, self.plugins = recipe, module, engine, plugins
        self.folder = RunFolder(recipe.run_folder)
        self.clock, self.meters = Clock(), Meters()
        self.dtype = dtype
        self._prepared = prepared
        self._skip = [tuple(r) for r in recipe.batch.skip_instances]
        self._train_split = prepared.split("train")
        self.lanes = LaneStates(module.backbone, recipe.batch.global_batch, engine.device)
        self.loader = self._make_loader()
        self.evaluator = Evaluator(
            prepared.split("validation"), recipe.batch.window_tokens, recipe.eval.batch,
            recipe.eval.max_tokens,
        )  # fmt: skip
        self.forward_flops = module.backbone.flops(recipe.batch.window_tokens)
        # Dropout must differ between ranks, weights must not: they were made before this.
        torch.manual_seed(derive_key(recipe.run.seed, "rank", rank()) % 2**63)
        if resume_from is not None:
            self._restore(resume_from)
        self.monitor = Monitor(self.folder, self.clock, recipe.run.steps)
        self.stop = StopRequest(self.folder.stop_file, recipe.run.stop_after_minutes)
        self.stopping = 0
        self.last_loss = math.nan
        self._peak = peak_flops(engine.device, dtype)
        self._mark = (self.meters.tokens, self.meters.train_s, self.meters.flops_counted)
        self._data_wait_s = 0.0

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

    # What a step needs ----------------------------------------------------------------------

    def next_batch(self) -> Batch:
        began = perf_counter()
        batch = self.loader.at(self.clock.instances, self.global_batch)
        self._data_wait_s += perf_counter() - began
        return batch

    def learning_rate(self, applied: int) -> float:
        """Of the update after `applied` updates."""
        recipe = self.recipe
        return learning_rate(recipe.optim, recipe.batch, applied, recipe.run.steps)

    @property
    def global_batch(self) -> int:
        """Instances of the step to come."""
        return self.recipe.batch.global_batch_at(self.clock.applied)

    def is_skipped(self, instance: int) -> bool:
        """Whether the global batch at `instance` touches a range that is to be passed over."""
        last = instance + self.global_batch
        return any(first < last and instance < end for first, end in self._skip)

    def share(self, totals: Tensor) -> None:
        """Sum loss and tokens over ranks and agree on requests to stop. Collective."""
        vector = torch.zeros(4, device=self.engine.device)
        vector[:2] = totals
        if request := self.stop.pending():
            vector[1 + request] = 1
        if world_size() > 1:
            dist.all_reduce(vector)
        loss_sum, count, stop, interrupt = vector.tolist()
        self.last_loss = loss_sum / count if count else math.nan
        self.stopping = 2 if interrupt else 1 if stop else 0

    def fp32_loss_is_broken(self) -> bool:
        """A non-finite loss, unless fp16's loss scale is there to deal with it."""
        return self.dtype != "fp16" and not math.isfinite(self.last_loss)

    # Logging and evaluation -------------------------------------------------------------------

    def log_step(self, result: StepResult) -> None:
        """Metrics of the step that just ended, and the console line."""
        tokens = self.meters.tokens
        tokens_before, trained_before, flops_before = self._mark
        seconds = max(self.meters.train_s - trained_before, 1e-9)
        flops_rate = (self.meters.flops_counted - flops_before) / seconds
        rate = (tokens - tokens_before) / seconds
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
            "perf/data_wait_ms": 1000 * self._data_wait_s,
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
        self._mark = (tokens, self.meters.train_s, self.meters.flops_counted)
        self._data_wait_s = 0.0

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
            "train/ppl": units["ppl_per_token"],
        }

    def evaluate(self) -> dict[str, float]:
        """Held-out loss; logged. Collective."""
        metrics = self.evaluator.run(self.engine, self.module)
        self.monitor.log(self.clock, metrics | self.meters.metrics())
        said = f"step {self.clock.applied} | validation: loss {metrics['eval/loss']:.4f}"
        if self.module.head.has_probabilities:
            said += f" | {metrics['eval/bits_per_byte']:.4f} bits/byte"
            said += f" | {metrics['eval/bpc']:.4f} bits/character"
        self.monitor.say(said)
        return metrics

    # Saving and restoring ---------------------------------------------------------------------

    @property
    def _layout(self) -> dict[str, Any]:
        return state.layout(self.recipe, world_size())

    def save(self) -> Path:
        """Write checkpoint `global_step{applied}`. Collective."""
        tag = checkpoint.tag_of(self.clock.applied)
        target = self.folder.checkpoints / tag
        if from_rank0(lambda: self._is_saved(target)):
            return target
        folder = checkpoint.begin(self.folder.checkpoints, tag)
        self.engine.save(self.folder.checkpoints, folder.name)
        state.save_rng(folder / "rng")
        tensors = {"lanes": self.lanes.gather(), "head": self.module.head.plugin_state()}
        tensors |= {plugin.name: plugin.plugin_state() for plugin in self.plugins}
        from_rank0(lambda: self._write_own(folder, tensors))
        checkpoint.commit(self.folder.checkpoints, tag, self.recipe.checkpoint.keep_last)
        self.monitor.say(f"saved {target}")
        return target

    def _is_saved(self, target: Path) -> bool:
        """This very position is already safe; an equal number of applied steps is not enough."""
        if checkpoint.problem(target, verify=False) is not None:
            return False
        return bool(state.read_trainer(target)["clock"] == self.clock.to_dict())

    def _write_own(self, folder: Path, tensors: dict[str, dict[str, Tensor]]) -> None:
        for name, content in tensors.items():
            if content:
                state.save_tensors(folder / "plugins" / f"{name}.safetensors", content)
        state.write_trainer(
            folder,
            {
                "format": 1,
                "clock": self.clock.to_dict(),
                "meters": asdict(self.meters),
                "skip_instances": self._skip,
                "layout": self._layout,
                "zero_stage": self._layout["zero_stage"],
                "world_size": self._layout["world_size"],
                "dtype": self.dtype,
                "tokenizer_fingerprint": self._prepared.tokenizer_fingerprint,
                "data_fingerprint": self._prepared.fingerprint,
                "identity": state.identity(self.recipe, self._prepared, self.dtype),
            },
        )

    def _restore(self, folder: Path) -> None:
        """Continue from a checkpoint. Collective."""
        trainer = state.read_trainer(folder)
        self.engine.load(folder.parent, folder.name)
        self.clock = Clock(**trainer["clock"])
        self.meters = Meters(**trainer["meters"])
        self._skip = sorted({*self._skip, *(tuple(r) for r in trainer["skip_instances"])})
        self.lanes.load(state.load_tensors(folder / "plugins" / "lanes.safetensors"))
        self.module.head.load_plugin_state(
            state.load_tensors(folder / "plugins" / "head.safetensors")
        )
        for plugin in self.plugins:
            plugin.load_plugin_state(
                state.load_tensors(folder / "plugins" / f"{plugin.name}.safetensors")
            )
        state.load_rng(folder / "rng")
        barrier()
