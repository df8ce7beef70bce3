"""The training of a classifier through `accelerate`: steps, looks at the validation texts, saves.

What a step does follows from its number alone: the texts, the rate, and the seed of dropout. So a
run that was stopped or killed ends as one that was not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from data_prep.errors import DataError, StoppedAndSaved
from pipeline.finetune.batches import Encoded, Order, padded
from pipeline.finetune.metrics import better, judge
from pipeline.finetune.progress import Keeper, Progress
from pipeline.ranks import gather_objects
from pipeline.recipe.finetune import FinetuneConfig
from pipeline.seeds import derive_key
from pipeline.train.stop import INTERRUPT, StopRequest

CLIP_NORM = 1.0


@dataclass
class Training:
    """What a step needs. `model` and `optimizer` as `accelerator.prepare` gave them."""

    accelerator: Accelerator
    model: Any
    optimizer: Any
    train: Encoded
    validation: Encoded
    weights: np.ndarray  # of the classes
    fill: int  # id that pads rows
    section: FinetuneConfig

    @property
    def steps(self) -> int:
        return max(1, self.section.epochs * len(self.train.ids) // self.section.batch)

    @property
    def steps_between_looks(self) -> int:
        return self.section.eval_steps or max(1, len(self.train.ids) // self.section.batch)


def fit(training: Training, keeper: Keeper, stop: StopRequest) -> Progress:
    """Train to the end, or until nothing gets better. Collective.

    StoppedAndSaved or KeyboardInterrupt when a stop was asked for, with everything saved.
    """
    section, seed = training.section, training.section.seed or 0
    order = Order(len(training.train.ids), section.batch, seed)
    progress = keeper.restore()
    bar = tqdm(
        total=training.steps, initial=progress.step, desc="fine-tuning", unit="step",
        disable=None if training.accelerator.is_main_process else True,
    )  # fmt: skip
    with bar:
        while progress.step < training.steps and not progress.early:
            loss, asked = _step(training, order.step(progress.step), progress.step, stop.pending())
            progress.step += 1
            progress.loss_sum += loss
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
            look = progress.step % training.steps_between_looks == 0
            look = look or progress.step == training.steps
            if look:
                _look(training, keeper, progress)
            if look or asked:
                keeper.save(progress)
            if asked == INTERRUPT:
                raise KeyboardInterrupt
            if asked:
                raise StoppedAndSaved(
                    f"stopped at step {progress.step} of {training.steps}"
                    f"{f' ({stop.reason})' if stop.reason else ''}, everything saved in "
                    f"{keeper.folder}: the same command goes on"
                )
    return progress


def rate(section: FinetuneConfig, step: int, steps: int) -> float:
    """The learning rate of a step: up in a straight line, then down to 0 at the end."""
    warmup = int(section.warmup_share * steps)
    if step < warmup:
        return section.lr * (step + 1) / (warmup + 1)
    return section.lr * (steps - step) / (steps - warmup)


def _step(training: Training, places: np.ndarray, step: int, wish: int) -> tuple[float, int]:
    """One update; the loss (nats) of the whole batch and what the ranks wish. Collective."""
    accelerator, section = training.accelerator, training.section
    model, device = training.model, accelerator.device
    rank, world = accelerator.process_index, accelerator.num_processes
    torch.manual_seed(derive_key(section.seed or 0, "dropout", step, rank) % 2**63)
    model.train(section.mode == "full")  # frozen weights are read without dropout
    for group in training.optimizer.param_groups:
        group["lr"] = rate(section, step, training.steps)
    mine = places[rank::world]
    batch = padded([training.train.ids[i] for i in mine], training.fill)
    labels = torch.from_numpy(training.train.labels[mine]).to(device)
    logits = model(**{name: values.to(device) for name, values in batch.items()}).logits
    losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    weights = torch.from_numpy(training.weights).to(device, losses.dtype)[labels]
    loss = (losses * weights).sum() / len(places)
    accelerator.backward(loss * world)  # gradients are averaged over the processes
    accelerator.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], CLIP_NORM)
    training.optimizer.step()
    training.optimizer.zero_grad()
    told = torch.tensor([loss.item(), float(wish)], dtype=torch.float64, device=device)
    told = accelerator.gather(told[None])
    return float(told[:, 0].sum()), int(told[:, 1].max())


def _look(training: Training, keeper: Keeper, progress: Progress) -> None:
    """Judge on the validation texts; keep the model when it is the best so far. Collective."""
    section = training.section
    found = judge(
        probabilities(training.accelerator, training.model, training.validation.ids, training.fill),
        training.validation.labels,
    )
    since = progress.step - (progress.history[-1]["step"] if progress.history else 0)
    progress.history.append(
        {"step": progress.step, "train_loss": progress.loss_sum / max(1, since), **found}
    )
    progress.loss_sum = 0.0
    value = found[section.metric]
    if value is None:
        raise DataError(
            f"finetune.metric={section.metric} cannot be told on validation texts that lack a "
            "class: give more of them or choose another metric"
        )
    if better(section.metric, value, progress.best):
        progress.best, progress.best_step, progress.waited = value, progress.step, 0
        keeper.keep_best(progress)
    else:
        progress.waited += 1
    progress.early = section.patience is not None and progress.waited >= section.patience


@torch.no_grad()
def probabilities(
    accelerator: Accelerator, model: Any, ids: list[list[int]], fill: int, rows: int = 64
) -> np.ndarray:
    """(n, C) float64 of all texts, in their order, on every process. Collective."""
    rank, world = accelerator.process_index, accelerator.num_processes
    model.eval()
    # Side by side what is about as long; the same number of batches on every process.
    by_length = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    batches = [by_length[at : at + rows] for at in range(0, len(ids), rows)]
    batches += [batches[-1]] * (-len(batches) % world)
    mine: dict[int, np.ndarray] = {}
    for members in batches[rank::world]:
        batch = padded([ids[i] for i in members], fill)
        logits = model(**{k: v.to(accelerator.device) for k, v in batch.items()}).logits
        shares = logits.double().softmax(dim=-1).cpu().numpy()
        mine.update(zip(members, shares, strict=True))
    found: dict[int, np.ndarray] = {}
    for part in gather_objects(mine):
        found |= part
    return np.stack([found[i] for i in range(len(ids))])
