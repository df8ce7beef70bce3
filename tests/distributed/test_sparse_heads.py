"""Heads that write their own gradients, on two ranks at every ZeRO stage, beside autograd over all
outputs; and bit-exact resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.clock import StepResult
from pipeline.heads.factored import FactoredHead
from pipeline.heads.gram import GramHead
from pipeline.protocols import Engine
from tests.distributed.training import train
from tests.pipeline.tiny import losses, write_recipe
from tests.ranks import run_ranks


class DenseSphericalHead(GramHead):
    """The same loss from all outputs, its gradient left to autograd."""

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        o = nn.functional.linear(hidden, self.weight, self.bias).float() * self.logit_scale
        a = o.gather(-1, targets.unsqueeze(-1)).flatten(0, -2)
        q, s, a = self._shaped((o * o).sum(-1).flatten(), o.sum(-1).flatten(), a)
        return (self.spherical(q, s, a, self.outputs) * weights.flatten()).sum(), weights.sum()

    def finish_accumulation(self, engine: Engine) -> None:
        """Nothing is left to do."""


def rank_train(
    rank: int, ranks: int, path: str, overrides: list[str], dense: bool, stop_at: int | None
) -> None:
    from pipeline.recipe import load_recipe
    from pipeline.train.engine import init_distributed
    from pipeline.train.module import TrainModule, build_module
    from pipeline.train.start import open_prepared, start_run

    init_distributed(2)
    recipe = load_recipe(path, overrides)
    module = build_module(recipe, open_prepared(recipe))
    if dense:
        ours = module.head
        kind = DenseSgdHead if isinstance(ours, FactoredHead) else DenseSphericalHead
        head = kind(
            ours.spherical, 1, logit_scale=ours.logit_scale, learned_scale=ours.scale is not None
        )
        head.bind(module.backbone.output_weight(), module.backbone.output_bias())
        module = TrainModule(module.backbone, head)
    run = start_run(recipe, module=module)
    train(run, None if stop_at is None else lambda: run.clock.iteration >= stop_at - 1)


def trained(folder: Path, name: str, ranks: int, *overrides: str, dense: bool = False,
            stop_at: int | None = None) -> list[float]:  # fmt: skip
    path = str(write_recipe(folder, "transformer"))
    dropout = ["model.config.resid_pdrop=0", "model.config.embd_pdrop=0"]
    changes = [f"run.name={name}", *dropout, *overrides]
    run_ranks(ranks, rank_train, ranks, path, changes, dense, stop_at)
    return losses(folder / "runs" / name)


TAYLOR = "head={kind: gram, loss: taylor, learned_scale: true}"


class DenseSgdHead(DenseSphericalHead):
    """The factored head's training written out: SGD on W itself, by its full gradient."""

    def bind(self, output_weight: Tensor | None, output_bias: Tensor | None = None) -> None:
        super().bind(output_weight)
        frozen = self._parameters.pop("weight")
        assert frozen is not None
        frozen.requires_grad_(False)
        self.weight = self.own = frozen.detach().clone().requires_grad_()

    def finish_accumulation(self, engine: Engine) -> None:
        self.rate = engine.lr * 10.0  # head.lr over optim.lr

    def after_step(self, result: StepResult) -> None:
        gradient, self.own.grad = self.own.grad, None
        if result is StepResult.APPLIED:
            gradient *= min(1.0, 0.2 / float(gradient.norm()))
            self.own.data.mul_(1 - self.rate * 0.01).sub_(self.rate * gradient)


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("stage", "tied"),
    [
        (0, True), (1, False), (2, True), (3, False), pytest.param(0, False, marks=LONG),
        pytest.param(1, True, marks=LONG), pytest.param(2, False, marks=LONG),
        pytest.param(3, True, marks=LONG),
    ],
)  # fmt: skip
def test_two_ranks_train_as_autograd_over_all_outputs(
    tmp_path: Path, stage: int, tied: bool
) -> None:
    """Accumulation of two micro-batches, clipping and decay inside."""
    changes = (TAYLOR, f"engine.zero_stage={stage}", "optim.gradient_clip_norm=0.5",
               f"model.config.tie_word_embeddings={str(tied).lower()}")  # fmt: skip
    expected = trained(tmp_path, "dense", 1, *changes, dense=True)
    found = trained(tmp_path, "gram", 2, *changes)
    assert found == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("loss", ["spherical", pytest.param("z", marks=LONG), "squared"])
def test_every_loss_and_a_bias(tmp_path: Path, loss: str) -> None:
    changes = (
        f"head={{kind: gram, loss: {loss}}}", "optim.lr=0.003", "model.architecture=phi",
        "model.config={num_hidden_layers: 1, num_attention_heads: 2, hidden_size: 16, "
        "intermediate_size: 32, max_position_embeddings: 32}",
    )  # fmt: skip
    expected = trained(tmp_path, "dense", 1, *changes, dense=True)
    found = trained(tmp_path, "gram", 2, *changes)
    assert found == pytest.approx(expected, rel=1e-4)


FACTORED = "head={kind: factored, loss: taylor, lr: 0.1, weight_decay: 0.01, clip_norm: 0.2}"


@pytest.mark.parametrize("stage", [*(pytest.param(s, marks=LONG) for s in (0, 1, 3)), 2])
def test_the_factored_head_on_two_ranks_is_sgd_on_one(tmp_path: Path, stage: int) -> None:
    changes = (FACTORED, "model.config.tie_word_embeddings=false", f"engine.zero_stage={stage}")
    expected = trained(tmp_path, "dense", 1, *changes[:2], dense=True)
    straight = trained(tmp_path, "straight", 2, *changes)
    assert straight == pytest.approx(expected, abs=5e-5)
    assert straight[-1] < straight[0]
    trained(tmp_path, "cut", 2, *changes, stop_at=3)
    assert trained(tmp_path, "cut", 2, *changes, "run.resume=must") == straight


SHARDED = TAYLOR.replace("gram,", "gram, sharded: true,")
UNTIED = "model.config.tie_word_embeddings=false"


@pytest.mark.parametrize("stage", [*(pytest.param(s, marks=LONG) for s in (0, 1, 2)), 3])
def test_rows_shared_out_over_ranks_train_as_whole_ones(tmp_path: Path, stage: int) -> None:
    """Clipping is apart, so off here."""
    changes = (UNTIED, f"engine.zero_stage={stage}", "optim.gradient_clip_norm=0")
    expected = trained(tmp_path, "whole", 1, TAYLOR, *changes)
    straight = trained(tmp_path, "straight", 2, SHARDED, *changes)
    assert straight == pytest.approx(expected, abs=5e-5)
    trained(tmp_path, "cut", 2, SHARDED, *changes, stop_at=3)
    assert trained(tmp_path, "cut", 2, SHARDED, *changes, "run.resume=must") == straight


def rank_sums(rank: int, cases: list[list[int]]) -> list[tuple[list[Tensor], list[Tensor], bool]]:
    """The reduced sums, those of one rank with all examples, and whether examples travelled."""
    from pipeline.heads.sums import Examples, GradientSums
    from pipeline.train.engine import init_distributed

    init_distributed(2)
    width, random = 8, torch.Generator().manual_seed(1)

    def drawn(count: int) -> Examples:
        h, ga = (torch.randn(count, n, generator=random) for n in (width, 2))
        gq, gs = torch.randn(2, count, generator=random)
        return Examples(h, gq, gs, ga, torch.randint(5, (count, 2), generator=random))

    found = []
    for examples in cases:
        parts = [drawn(count) for count in examples]
        ours, alone = (GradientSums(width, torch.device("cpu"), torch.float32) for _ in range(2))
        for part in parts[rank::2]:
            ours.add(part)
        for part in parts:
            alone.add(part)
        ours.reduce()
        travelled = bool(ours._waiting)
        both = [[sums.c, sums.b, *sums.rows()] for sums in (ours, alone)]
        found.append((*both, travelled))
    return found


def test_few_examples_travel_themselves_and_many_as_their_sums() -> None:
    """Eight of width eight are many. Either way both ranks come to the same to the last bit."""
    cases = [[2, 3, 1, 1], [4, 4], [30, 2], [1, 20, 3, 1]]
    here, there = run_ranks(2, rank_sums, cases)
    for (first, alone, travelled), (second, _, _), examples in zip(here, there, cases, strict=True):
        assert travelled == (sum(examples) < 8)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        torch.testing.assert_close(first, alone)


def rank_shares(rank: int) -> tuple[Tensor, ...]:
    from pipeline.heads.rows import RowShares
    from pipeline.train.engine import init_distributed

    init_distributed(2)
    matrix = torch.arange(14.0).view(7, 2)
    shares = RowShares(7)
    ids = torch.tensor([[6, 0], [0, 3], [2, 6]]) if rank == 0 else torch.tensor([[5, 5]])
    mine = torch.tensor([1, 3, 6]) if rank == 0 else torch.tensor([0, 3])
    came, rows = shares.route(mine, matrix[mine] + 100 * rank)
    own = matrix[shares.own]
    summed = torch.zeros_like(own).index_add_(0, came, rows)
    return shares.fetch(ids, own), matrix[ids], shares.gather(own), matrix, summed


def test_rows_are_fetched_and_routed_between_unequal_shares() -> None:
    (first, wanted, whole, matrix, even), (second, wanted2, whole2, _, odd) = run_ranks(
        2, rank_shares
    )
    assert torch.equal(first, wanted) and torch.equal(second, wanted2)
    assert torch.equal(whole, matrix) and torch.equal(whole2, matrix)
    expected = torch.zeros(7, 2)
    for id, extra in ((1, 0), (3, 0), (6, 0), (0, 100), (3, 100)):
        expected[id] += matrix[id] + extra
    assert torch.equal(even, expected[::2]) and torch.equal(odd, expected[1::2])


@pytest.mark.long
def test_shared_rows_are_clipped_together_and_go_on_with_fewer_ranks(tmp_path: Path) -> None:
    changes = (SHARDED, UNTIED, "optim.gradient_clip_norm=0.2")
    expected = trained(tmp_path, "one", 1, *changes)
    trained(tmp_path, "cut", 2, *changes, stop_at=3)
    resumed = trained(tmp_path, "cut", 1, *changes, "run.resume=must")
    assert resumed == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("stage", [pytest.param(0, marks=LONG), 2])
def test_half_precision(tmp_path: Path, stage: int) -> None:
    changes = (TAYLOR, "precision.dtype=bf16", f"engine.zero_stage={stage}")
    expected = trained(tmp_path, "dense", 1, *changes, dense=True)
    found = trained(tmp_path, "gram", 2, *changes)
    assert found == pytest.approx(expected, abs=2e-2)


@pytest.mark.parametrize("stage", [*(pytest.param(s, marks=LONG) for s in (0, 2, 3)), 1])
def test_resume_is_exact(tmp_path: Path, stage: int) -> None:
    changes = (TAYLOR, f"engine.zero_stage={stage}")
    straight = trained(tmp_path, "straight", 2, *changes)
    trained(tmp_path, "cut", 2, *changes, stop_at=3)
    assert trained(tmp_path, "cut", 2, *changes, "run.resume=must") == straight


PHASED = (
    "head={kind: phased, phases: [{until: 0.5, head: {kind: gram, loss: taylor}}, "
    "{until: 1, head: {kind: softmax}}]}"
)


@pytest.mark.long
@pytest.mark.parametrize("stage", [*(pytest.param(s, marks=LONG) for s in (0, 1, 2)), 3])
def test_phases_change_on_all_ranks_and_over_a_resume(tmp_path: Path, stage: int) -> None:
    """The gradient of one matrix comes from the head in one phase, from autograd in the next."""
    changes = (PHASED, f"engine.zero_stage={stage}")
    expected = trained(tmp_path, "one", 1, PHASED)
    straight = trained(tmp_path, "straight", 2, *changes)
    assert straight == pytest.approx(expected, abs=5e-5)
    trained(tmp_path, "cut", 2, *changes, stop_at=3)
    assert trained(tmp_path, "cut", 2, *changes, "run.resume=must") == straight


@pytest.mark.parametrize("stage", [pytest.param(1, marks=LONG), 2, 3])
def test_ranks_without_a_word_of_a_cluster_come_all_the_same(tmp_path: Path, stage: int) -> None:
    """The last cluster has two of 300 ids: most micro-batches have none of them."""
    head = "head={kind: adaptive, cutoffs: [200, 298]}"
    expected = trained(tmp_path, "one", 1, head)
    found = trained(tmp_path, "two", 2, head, f"engine.zero_stage={stage}")
    assert found == pytest.approx(expected, abs=5e-5)
