"""What a run has used up: tokens, seconds, counted FLOPs."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.flops import Flops


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

    def count(self, tokens: int, dense: float, counted: Flops) -> None:
        """Add a global batch: FLOPs of a token as a dense model has them, and as they were."""
        self.tokens += tokens
        self.flops_dense += tokens * dense
        self.flops_counted += tokens * counted.total
        self.flops_blocks += tokens * counted.blocks
        self.flops_attention += tokens * counted.attention
        self.flops_head += tokens * counted.head
