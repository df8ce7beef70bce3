"""The seams hold: a plug-in that masks weights, and a head that writes its own gradients and owns a
parameter, under both engines, at every ZeRO stage, on two ranks, with bit-exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.clock import Clock, StepResult
from pipeline.heads.softmax import SoftmaxHead
from pipeline.models.mlstm.cell import NormedMatrix
from pipeline.protocols import Engine, StepPlugin
from tests.distributed.training import train
from tests.pipeline.tiny import losses, metrics, write_recipe
from tests.ranks import run_ranks


class RandomMask(StepPlugin):
    """Masks recurrent matrices in the forward pass; redraws the masks every third iteration."""

    name = "random_mask"

    def setup(self, model: nn.Module) -> None:
        self.masks: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if isinstance(module, NormedMatrix):
                self.masks[name] = torch.ones(module.v.shape)
                module.register_forward_hook(self._mask(name))
        self._draw(0)

    def _mask(self, name: str) -> Any:
        return lambda module, inputs, out: out * self.masks[name]

    def _draw(self, iteration: int) -> None:
        generator = torch.Generator().manual_seed(iteration)
        for mask in self.masks.values():
            mask.copy_(torch.rand(mask.shape, generator=generator) < 0.5)

    def after_backward(self, engine: Engine, clock: Clock) -> StepResult | None:
        if clock.iteration % 3 != 2:
            return None
        names = dict(engine.named_parameters())
        for name, mask in self.masks.items():
            gradient = engine.get_gradient(names[f"{name}.v"])
            assert gradient.shape == mask.shape and gradient.abs().sum() > 0
        self._draw(clock.iteration)
        return StepResult.TOPOLOGY

    def metrics(self, clock: Clock) -> dict[str, float]:
        return {
            "sparsity/density": float(torch.cat([m.flatten() for m in self.masks.values()]).mean())
        }

    def plugin_state(self) -> dict[str, Tensor]:
        return dict(self.masks)

    def load_plugin_state(self, tensors: dict[str, Tensor]) -> None:
        for name, mask in self.masks.items():
            mask.copy_(tensors[name])


class AccumulatingHead(SoftmaxHead):
    """Softmax whose matrix gets its gradient once per step, from sums kept over micro-batches, and
    which trains an output offset of its own, out of the optimizer's sight."""

    def __init__(self, offset_lr: float) -> None:
        super().__init__()
        self.offset_lr = offset_lr

    def bind(self, output_weight: Tensor | None, output_bias: Tensor | None = None) -> None:
        super().bind(output_weight, output_bias)
        self.offset = torch.zeros(self.vocab_size)
        self.sums = torch.zeros(self.vocab_size, self.width)
        self.seen = torch.zeros(self.vocab_size)

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.weight.detach()
        logits = nn.functional.linear(hidden, weight, self.bias) + self.offset
        log_p = logits.log_softmax(-1)
        picked = log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        if torch.is_grad_enabled():
            d_logits = (
                log_p.detach().exp() - nn.functional.one_hot(targets, self.vocab_size)
            ).flatten(0, 1)
            self.sums += d_logits.t() @ hidden.detach().flatten(0, 1)
            self.seen += d_logits.sum(0)
            self.tokens = getattr(self, "tokens", 0) + targets.numel()
        return -(picked * weights).sum(), weights.sum()

    def finish_accumulation(self, engine: Engine) -> None:
        total = torch.cat([self.sums, self.seen.unsqueeze(1)], dim=1)
        tokens = torch.tensor(float(self.tokens))
        if dist.get_world_size() > 1:
            dist.all_reduce(total)
            dist.all_reduce(tokens)
        self.mean = total / tokens
        parameter = dict(engine.named_parameters())["backbone.causal_lm.lm_head.weight"]
        engine.set_gradient(parameter, self.mean[:, :-1])

    def after_step(self, result: StepResult) -> None:
        if result is StepResult.APPLIED:
            self.offset -= self.offset_lr * self.mean[:, -1]
        self.sums.zero_()
        self.seen.zero_()
        self.tokens = 0

    def owned_parameters(self) -> dict[str, Tensor]:
        return {"offset": self.offset}


def build(recipe: Any, prepared: Any, offset_lr: float) -> Any:
    from pipeline.train.module import TrainModule, build_module

    module = build_module(recipe, prepared)
    head = AccumulatingHead(offset_lr)
    head.bind(module.backbone.output_weight(), module.backbone.output_bias())
    return TrainModule(module.backbone, head)


def rank_train(
    rank: int, path: str, overrides: list[str], stop_at: int | None, double: str, offset_lr: float
) -> Any:
    from pipeline.recipe import load_recipe
    from pipeline.train.engine import init_distributed
    from pipeline.train.start import open_prepared, start_run

    init_distributed(2)
    recipe = load_recipe(path, overrides)
    module = build(recipe, open_prepared(recipe), offset_lr) if "head" in double else None
    plugins = [RandomMask()] if "mask" in double else []
    run = start_run(recipe, plugins, module)
    names = {name for name, _ in run.engine.named_parameters()}
    assert not any("offset" in name for name in names)  # owned: out of the optimizer's sight
    train(run, None if stop_at is None else lambda: run.clock.iteration >= stop_at - 1)
    owned = {k: v.clone() for k, v in run.module.head.owned_parameters().items()}
    return run.clock.to_dict(), owned, [p.plugin_state() for p in run.plugins]


ENGINES = [
    {"zero_stage": 3},
    *(pytest.param(engine, marks=pytest.mark.long)
      for engine in ({"kind": "ddp"}, *({"zero_stage": stage} for stage in range(3)))),
]  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_both_doubles_resume_to_the_last_bit(tmp_path: Path, engine: dict[str, Any]) -> None:
    recipe = str(write_recipe(tmp_path, "mlstm", engine=engine, run__steps=7))
    one = run_ranks(2, rank_train, recipe, ["run.name=straight"], None, "head mask", 0.1)
    run_ranks(2, rank_train, recipe, ["run.name=cut"], 4, "head mask", 0.1)
    two = run_ranks(
        2, rank_train, recipe, ["run.name=cut", "run.resume=must"], None, "head mask", 0.1
    )
    assert losses(tmp_path / "runs/cut") == losses(tmp_path / "runs/straight")
    clock, owned, masks = one[0]
    assert clock == two[0][0] and clock["iteration"] == 10 and clock["applied"] == 7
    assert torch.equal(owned["offset"], two[0][1]["offset"]) and owned["offset"].abs().sum() > 0
    assert torch.equal(owned["offset"], one[1][1]["offset"])
    for name, mask in masks[0].items():
        assert torch.equal(mask, two[1][2][0][name])
    assert any("sparsity/density" in line for line in metrics(tmp_path / "runs/cut"))


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_a_head_that_writes_full_gradients_trains_like_autograd(
    tmp_path: Path, engine: dict[str, Any]
) -> None:
    recipe = str(write_recipe(tmp_path, "mlstm", engine=engine))
    run_ranks(2, rank_train, recipe, ["run.name=autograd"], None, "", 0.0)
    run_ranks(2, rank_train, recipe, ["run.name=written"], None, "head", 0.0)
    assert losses(tmp_path / "runs/written") == pytest.approx(
        losses(tmp_path / "runs/autograd"), abs=2e-5
    )
