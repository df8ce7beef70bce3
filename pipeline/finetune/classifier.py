"""The classifier: an exported model's pooled vector and a linear layer, and its training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline.evaluate.pooling import PooledRows, pooled


class Classifier(nn.Module):
    """forward(ids, marks) -> logits (B, classes); see `pooling.PooledRows` for the arguments.

    With `probe` only the linear layer trains, and the model stays in eval mode.
    """

    def __init__(self, model: Any, classes: int, probe: bool) -> None:
        super().__init__()
        self.model = model
        self.probe = probe
        self.linear = nn.Linear(model.config.hidden_size, classes)
        if probe:
            model.requires_grad_(False)
        elif (output := model.get_output_embeddings()) is not None:
            # Not used in here, unless tied: data parallelism waits for gradients of what trains.
            if output.weight is not model.get_input_embeddings().weight:
                output.requires_grad_(False)

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if self.probe:
            self.model.eval()
        return self

    def forward(self, ids: Tensor, marks: Tensor) -> Tensor:
        return self.linear(pooled(self.model, PooledRows(ids, marks)))


def fit(
    accelerator: Accelerator, classifier: nn.Module, loader: DataLoader, epochs: int, lr: float
) -> tuple[nn.Module, float]:
    """Train with AdamW, the rate falling linearly to 0.

    Returns the prepared classifier and the mean loss (nats) of the last epoch on this process.
    """
    trained = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    steps = epochs * len(loader)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / steps)
    classifier, optimizer, loader, schedule = accelerator.prepare(
        classifier, optimizer, loader, schedule
    )
    losses: list[float] = []
    with tqdm(total=steps, desc="fine-tuning", unit="step", disable=None) as progress:
        for _ in range(epochs):
            losses = []
            classifier.train()
            for ids, marks, labels in loader:
                loss = nn.functional.cross_entropy(classifier(ids, marks), labels)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                progress.update()
                progress.set_postfix(loss=f"{losses[-1]:.3f}")
    return classifier, float(np.mean(losses))


@torch.no_grad()
def predict(accelerator: Accelerator, classifier: nn.Module, loader: DataLoader) -> np.ndarray:
    """The class numbers of all texts of `loader`, in its order, on every process."""
    loader = accelerator.prepare(loader)
    classifier.eval()
    found = [
        accelerator.gather_for_metrics(classifier(ids, marks).argmax(dim=1)).cpu().numpy()
        for ids, marks, _ in loader
    ]
    return np.concatenate(found)
