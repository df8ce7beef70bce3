"""The `engine` section: how the model is spread over devices, and how gradients travel."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from data_prep.recipe.section import Section


class EngineConfig(Section):
    """DeepSpeed, whose own settings live in a template of `ds_configs/`, or PyTorch's DDP."""

    kind: Literal["deepspeed", "ddp"] = Field(
        default="deepspeed",
        description="deepspeed: ZeRO and offload; ddp: DistributedDataParallel, the whole model on "
        "every device, for communication hooks, optim.sam_rho and optimizers of whole matrices",
    )
    zero_stage: int = Field(default=0, ge=0, le=3, description="ZeRO stage: what is sharded")
    template: str | None = Field(
        default=None, description="DeepSpeed JSON; null = ds_configs/zero{zero_stage}.json"
    )
    bucket_mib: float = Field(
        default=25, gt=0, description="ddp: MiB of gradients that are exchanged at once"
    )
    comm_hook: Literal["none", "fp16", "bf16", "powersgd", "post_local_sgd"] = Field(
        default="none",
        description="ddp: how gradients are exchanged; fp16, bf16: in that precision; powersgd: as "
        "factors of low rank; post_local_sgd: not at all, weights are averaged instead",
    )
    powersgd_rank: int = Field(default=1, ge=1, description="powersgd: rank of the factors")
    hook_after_steps: int = Field(
        default=1000, ge=2,
        description="powersgd, post_local_sgd: steps with the whole exchange before it begins",
    )  # fmt: skip
    local_steps: int = Field(
        default=4, ge=2, description="post_local_sgd: steps between two averages of the weights"
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="compute activations again in backward instead of keeping them: a third more "
        "time for a fraction of their memory",
    )
    compile: bool = Field(
        default=False,
        description="Transformers, ZeRO 0 to 2: let torch.compile fuse the model's operations; a "
        "minute or two more at the start",
    )
    timeout_minutes: float = Field(
        default=30, gt=0, le=525_600, description="longest wait for another rank before giving up"
    )

    @property
    def label(self) -> str:
        """A word for what the model is spread by."""
        return "DDP" if self.kind == "ddp" else f"ZeRO {self.zero_stage}"

    @model_validator(mode="after")
    def _is_of_its_kind(self) -> EngineConfig:
        if self.kind == "ddp" and self.zero_stage:
            raise ValueError(
                f"zero_stage={self.zero_stage} with kind=ddp: DistributedDataParallel keeps the "
                "whole model on every device; set zero_stage=0 or kind=deepspeed"
            )
        if self.kind == "ddp" and self.template:
            raise ValueError(
                f"template={self.template} with kind=ddp: it is read by DeepSpeed only; remove it "
                "or set kind=deepspeed"
            )
        if self.kind == "deepspeed" and self.comm_hook != "none":
            raise ValueError(
                f"comm_hook={self.comm_hook} with kind=deepspeed: such hooks are called by "
                "DistributedDataParallel, and DeepSpeed exchanges gradients by itself; set "
                "kind=ddp or comm_hook=none"
            )
        return self
