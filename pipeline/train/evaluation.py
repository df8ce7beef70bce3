"""Held-out loss inside the training loop: the validation split, with a state of its own.

The number of lanes and windows does not depend on the number of devices, so neither does the
result: ranks split the rows, and a rank without a row runs one of weight 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_prep.errors import DataError
from data_prep.shards import Split
from pipeline.data.loader import micro_batch
from pipeline.data.order import LaneOrder
from pipeline.data.units import loss_units
from pipeline.protocols import Engine
from pipeline.ranks import world_size
from pipeline.train.module import TrainModule


class Evaluator:
    """Loss over up to `max_tokens` tokens of a split, walked in `rows` lanes."""

    def __init__(self, split: Split, window: int, rows: int, max_tokens: int) -> None:
        windows = (min(split.tokens, max_tokens + 1) - 1) // window
        if windows < 1:
            raise DataError(
                f"the {split.name} split holds {split.tokens} tokens, fewer than one window of "
                f"{window} + 1: raise data.split.{split.name} or eval.max_tokens"
            )
        self._split = split
        self._order = LaneOrder(
            tokens=split.tokens, window=window, seed=0, lanes=min(rows, windows)
        )
        self._steps = windows // self._order.lanes

    @torch.no_grad()
    def run(
        self, engine: Engine, module: TrainModule, beat: Callable[[str], None]
    ) -> dict[str, float]:
        """Metrics under `eval/`. Collective: every rank runs the same number of passes.

        `beat` is told of each, as a sign of life.
        """
        lanes = np.array_split(np.arange(self._order.lanes), world_size())
        mine = lanes[engine.rank]
        rows = max(len(part) for part in lanes)  # equal on all ranks; short ones are padded
        state = module.backbone.initial_state(rows, engine.device)
        totals = torch.zeros(2, dtype=torch.float64, device=engine.device)
        was_training = module.training
        module.eval()
        for step in range(self._steps):
            beat(f"in evaluation batch {step + 1} of {self._steps}")
            batch = self._batch(step, mine, rows)
            loss_sum, count, state = engine.forward(*(_to(t, engine) for t in batch[:3]), state,
                                                    _to(batch[3], engine))  # fmt: skip
            totals += torch.stack([loss_sum.double(), count.double()])
        module.train(was_training)
        if world_size() > 1:
            dist.all_reduce(totals)
        loss = float(totals[0] / totals[1])
        if not module.head.has_probabilities:
            return {"eval/loss": loss}  # of no unit that could be compared
        units = loss_units(loss, self._split)
        return {
            "eval/loss": units["nats_per_token"],
            "eval/bpc": units["bits_per_character"],
            **{
                f"eval/{key}": units[key]
                for key in ("bits_per_byte", "ppl_per_token", "ppl_per_byte")
            },
        }

    def _batch(self, step: int, mine: np.ndarray, rows: int) -> tuple[Tensor | None, ...]:
        padded = np.zeros(rows, dtype=np.int64)
        padded[: len(mine)] = mine
        starts = self._order.starts(step * self._order.lanes + padded)
        resets = self._split.resets(starts, self._order.window)
        tokens = self._split.windows(starts, self._order.window + 1)
        batch = micro_batch(tokens, resets, slice(0, rows))
        batch.weights[len(mine) :] = 0
        return batch.inputs, batch.targets, batch.weights, batch.resets


def _to(tensor: Tensor | None, engine: Engine) -> Tensor | None:
    return None if tensor is None else tensor.to(engine.device)
