"""The `batch` section: what one optimizer step sees. Accumulation is derived, never stated."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydantic import Field, model_validator

from data_prep.recipe.section import Section

_MOST = 2**31  # far above any batch there is


class BatchConfig(Section):
    """An instance is one row of the global batch: `window_tokens` consecutive tokens."""

    global_batch: int = Field(
        ge=1, le=_MOST, description="instances per optimizer step, over all devices"
    )
    micro_batch: int = Field(ge=1, le=_MOST, description="instances a device takes at once")
    window_tokens: int = Field(
        ge=1, le=_MOST, description="tokens per instance (truncated BPTT length)"
    )
    ramp: list[tuple[int, int]] = Field(
        default_factory=list,
        description="smaller batches first: pairs of tokens and the global batch until so many "
        "have been trained on, e.g. [[1000000, 32], [4000000, 128]]; then global_batch",
    )
    skip_instances: list[tuple[int, int]] = Field(
        default_factory=list,
        description="ranges [first, last) of instance numbers whose batches are passed over",
    )

    @property
    def tokens(self) -> int:
        """Tokens of one optimizer step, over all devices, after the ramp."""
        return self.global_batch * self.window_tokens

    def global_batch_at(self, applied: int) -> int:
        """Instances of the update after `applied` updates. Steps that were skipped do not count:
        nothing but the number of updates decides it."""
        for last, batch in self._stages():
            if applied < last:
                return batch
        return self.global_batch

    def tokens_at(self, applied: int) -> int:
        """Tokens of the update after `applied` updates."""
        return self.global_batch_at(applied) * self.window_tokens

    def tokens_after(self, applied: int) -> int:
        """Tokens of the first `applied` updates."""
        tokens = done = 0
        for last, batch in self._stages():
            steps = min(applied, last) - done
            tokens, done = tokens + steps * batch * self.window_tokens, done + steps
        return tokens + (applied - done) * self.tokens

    def steps_for(self, tokens: int) -> int:
        """Updates until at least so many tokens have been trained on."""
        done = seen = 0
        for last, batch in self._stages():
            size = batch * self.window_tokens
            if tokens <= seen + (last - done) * size:
                return done + -(-(tokens - seen) // size)
            seen, done = seen + (last - done) * size, last
        return done + -(-(tokens - seen) // self.tokens)

    def _stages(self) -> Iterator[tuple[int, int]]:
        """The update before which each batch of the ramp ends, and the batch."""
        last = seen = 0
        for until, batch in self.ramp:
            steps = max(0, -(-(until - seen) // (batch * self.window_tokens)))
            last, seen = last + steps, seen + steps * batch * self.window_tokens
            yield last, batch

    @model_validator(mode="after")
    def _divides(self) -> BatchConfig:
        if self.global_batch % self.micro_batch:
            better = _nearest_divisor(self.global_batch, self.micro_batch)
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide global_batch {self.global_batch}: "
                f"choose a micro_batch such as {better}"
            )
        untils = [until for until, _ in self.ramp]
        if untils != sorted(set(untils)) or any(until < 1 for until in untils):
            raise ValueError(f"ramp={self.ramp}: expected tokens that rise from pair to pair")
        for until, batch in self.ramp:
            if batch < 1 or batch % self.micro_batch:
                raise ValueError(
                    f"ramp has a batch of {batch} until {until} tokens, which does not divide into "
                    f"micro-batches of {self.micro_batch}: choose a multiple"
                )
        return self


def _nearest_divisor(number: int, near: int) -> int:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    divisors = {*small, *(number // d for d in small)}
    return min(divisors, key=lambda d: (abs(d - near), d))
