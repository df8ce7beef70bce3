"""The `batch` section: what one optimizer step sees. Accumulation is derived, never stated."""

from __future__ import annotations

from pydantic import Field, model_validator

from data_prep.recipe.section import Section


class BatchConfig(Section):
    """An instance is one row of the global batch: `window_tokens` consecutive tokens."""

    global_batch: int = Field(ge=1, description="instances per optimizer step, over all devices")
    micro_batch: int = Field(ge=1, description="instances a device takes at once")
    window_tokens: int = Field(ge=1, description="tokens per instance (truncated BPTT length)")
    skip_instances: list[tuple[int, int]] = Field(
        default_factory=list,
        description="ranges [first, last) of instance numbers whose batches are passed over",
    )

    @property
    def tokens(self) -> int:
        """Tokens of one optimizer step, over all devices."""
        return self.global_batch * self.window_tokens

    @model_validator(mode="after")
    def _divides(self) -> BatchConfig:
        if self.global_batch % self.micro_batch:
            better = _nearest_divisor(self.global_batch, self.micro_batch)
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide global_batch {self.global_batch}: "
                f"choose a micro_batch such as {better}"
            )
        return self


def _nearest_divisor(number: int, near: int) -> int:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: (abs(d - near), d))
