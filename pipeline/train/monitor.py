"""What a run says about itself: metrics.jsonl first, TensorBoard beside it, one console line.

Only rank 0 writes; every rank may call. After a resume, lines past the checkpoint are cut off, so
that the file reads like that of an uninterrupted run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from time import strftime
from typing import Any

from data_prep.manifest import write_atomic
from pipeline.clock import Clock
from pipeline.ranks import rank
from pipeline.run_folder import RunFolder


class Monitor:
    """Writes metrics of one run; keys are `group/name`, values numbers."""

    def __init__(self, folder: RunFolder, clock: Clock, total_steps: int) -> None:
        self._writes = rank() == 0
        self._total = total_steps
        if not self._writes:
            return
        _cut_after(folder, clock)
        self._file = folder.metrics.open("a", encoding="utf-8")
        self._position = os.open(folder.position, os.O_WRONLY | os.O_CREAT, 0o644)
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(folder.root / "tb", purge_step=clock.applied)

    def log(self, clock: Clock, metrics: dict[str, Any], **extra: Any) -> None:
        """One line for this position; None values are left out."""
        if not self._writes:
            return
        values = {key: value for key, value in metrics.items() if value is not None}
        line = {
            "step": clock.applied, "iteration": clock.iteration, "instances": clock.instances,
            **extra, **values,
        }  # fmt: skip
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for key, value in values.items():
            self._board.add_scalar(key, value, clock.applied)

    def at(self, applied: int, first: int, end: int) -> None:
        """Keep the position of the step that begins where a kill leaves it to be read."""
        if self._writes:
            os.pwrite(self._position, b"%15d %20d %20d\n" % (applied, first, end), 0)

    def say(self, text: str) -> None:
        """A line on rank 0's console."""
        if self._writes:
            print(f"{strftime('%H:%M:%S')} {text}", flush=True)

    def progress(
        self, clock: Clock, metrics: dict[str, Any], eta_s: float, plugins: Sequence[str] = ()
    ) -> None:
        """The console line of a logged step, with a word from each of `plugins`."""
        parts = [
            f"step {clock.applied}/{self._total} ({clock.applied / self._total:.1%})",
            f"loss {metrics['train/loss']:.4f}",
            f"lr {metrics['train/learning_rate']:.2e}",
            f"{_thousands(metrics['perf/tokens_per_sec'])} tok/s",
        ]
        if metrics["train/grad_norm"] is not None:
            parts.insert(3, f"gnorm {metrics['train/grad_norm']:.2f}")
        if metrics["train/loss_scale"] is not None:
            parts.append(f"scale {metrics['train/loss_scale']:.0f}")
        if metrics["train/skipped_steps"]:
            parts.append(f"skipped {metrics['train/skipped_steps']}")
        if "perf/mfu" in metrics:
            parts.append(f"mfu {metrics['perf/mfu']:.1%}")
        parts += [*plugins, f"eta {_duration(eta_s)}"]
        self.say(" | ".join(parts))

    def close(self) -> None:
        if self._writes:
            os.close(self._position)
            self._file.close()
            self._board.close()


def _cut_after(folder: RunFolder, clock: Clock) -> None:
    """Drop the lines that a resumed run will write again."""
    path: Path = folder.metrics
    if not path.is_file():
        return
    kept = [line for line in folder.read_metrics() if line["instances"] <= clock.instances]
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))


def _thousands(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 10_000 else f"{number:.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
