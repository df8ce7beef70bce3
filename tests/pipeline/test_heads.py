"""Heads beside the Gram head: sampled, adaptive, of libraries, and one after the other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_prep.errors import RecipeError
from pipeline.clock import Clock, StepResult
from pipeline.heads.adaptive import AdaptiveHead
from pipeline.heads.gram import GramHead
from pipeline.heads.library import LibrarySoftmaxHead
from pipeline.heads.phased import PhasedHead
from pipeline.heads.sampled import SampledHead
from pipeline.heads.sharded import ShardedGramHead
from pipeline.heads.softmax import SoftmaxHead
from pipeline.heads.spherical import build_loss
from pipeline.plan.memory import meta_module
from pipeline.recipe import load_recipe
from pipeline.recipe.optim import OptimConfig
from tests.pipeline.tiny import write_recipe

OUTPUTS, WIDTH = 50, 6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    weights = torch.ones(4, 8)
    weights[:, -2:] = 0
    return torch.randn(4, 8, WIDTH, requires_grad=True), torch.randint(OUTPUTS, (4, 8)), weights


def bound(head: Any, biased: bool = True) -> Any:
    bias = torch.randn(OUTPUTS).requires_grad_() if biased else None
    head.bind(torch.randn(OUTPUTS, WIDTH).requires_grad_(), bias)
    return head


def gradients(head: Any, batch: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    leaves = [batch[0], head.weight, *([] if head.bias is None else [head.bias])]
    return list(torch.autograd.grad(head(*batch)[0], leaves))


@pytest.mark.parametrize("library", ["torch", "deepspeed"])
@pytest.mark.parametrize("biased", [False, True])
def test_a_library_gives_our_loss_and_gradients(library: str, biased: bool) -> None:
    if library == "torch" and not hasattr(nn.functional, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")
    batch = inputs()
    theirs = bound(LibrarySoftmaxHead(library, logit_scale=0.5), biased)
    ours = SoftmaxHead(logit_scale=0.5)
    ours.bind(theirs.weight, theirs.bias)
    torch.testing.assert_close(theirs(*batch), ours(*batch))
    torch.testing.assert_close(gradients(theirs, batch), gradients(ours, batch))
    with torch.no_grad():
        torch.testing.assert_close(theirs(*batch), ours(*batch))


@pytest.mark.parametrize("library", ["liger", "cce"])
def test_a_library_for_gpus_says_so(library: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RecipeError, match=f"head.library={library} needs a GPU"):
        LibrarySoftmaxHead(library)


@pytest.mark.parametrize("biased", [False, True])
def test_sampled_softmax_approaches_the_full_one(biased: bool) -> None:
    batch = inputs()
    sampled = bound(SampledHead(400_000, seed=1, logit_scale=0.5), biased)
    full = SoftmaxHead(logit_scale=0.5)
    full.bind(sampled.weight, sampled.bias)
    torch.testing.assert_close(sampled(*batch)[0], full(*batch)[0], rtol=0.02, atol=0.0)
    for a, b in zip(gradients(sampled, batch), gradients(full, batch), strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1)
    with torch.no_grad():
        assert torch.equal(sampled(*batch)[0], full(*batch)[0])


def test_the_sample_is_a_function_of_step_and_micro_batch() -> None:
    batch, head = inputs(), bound(SampledHead(20, seed=1))
    clock = Clock()
    first = []
    for _ in range(2):
        head.begin_step(clock)
        first.append([head(*batch)[0].item() for _ in range(2)])
    assert first[0] == first[1] and first[0][0] != first[0][1]
    clock.advance(StepResult.APPLIED, 4)
    head.begin_step(clock)
    assert head(*batch)[0].item() != first[0][0]


def test_adaptive_softmax_is_a_distribution_and_trains() -> None:
    hidden, targets, weights = inputs()
    head = AdaptiveHead([10, 25], 2.0)
    head.bind(torch.empty(OUTPUTS, WIDTH))
    log_prob = head.log_prob(hidden)
    torch.testing.assert_close(log_prob.exp().sum(dim=-1), torch.ones(4, 8))
    picked = log_prob.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(head(hidden, targets, weights)[0], -(picked * weights).sum())
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = head(hidden.detach(), targets, weights)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_shared_rows_take_adams_steps_and_go_into_the_export() -> None:
    """On one rank, beside AdamW on the matrix itself with the gradient that autograd finds."""
    optim = OptimConfig(lr=0.05, weight_decay=0.1, gradient_clip_norm=0.3, betas=(0.8, 0.9))
    matrix = nn.Parameter(torch.randn(OUTPUTS, WIDTH))
    plain = matrix.detach().clone().requires_grad_()
    head = ShardedGramHead(build_loss("taylor"), 32, optim)
    head.bind(matrix)
    adam = torch.optim.AdamW([plain], lr=0.05, weight_decay=0.1, betas=(0.8, 0.9))
    engine = SimpleNamespace(lr=0.05, loss_scale=1.0, world_size=1)
    for _ in range(5):
        hidden, targets, weights = inputs()
        head(hidden, targets, weights)[0].backward()
        head.finish_accumulation(engine)  # type: ignore[arg-type]
        head.after_step(StepResult.APPLIED)
        o = hidden.detach() @ plain.t()
        a = o.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        losses = torch.log(OUTPUTS + o.sum(-1) + (o * o).sum(-1) / 2) - torch.log1p(a + a * a / 2)
        (losses * weights).sum().backward()
        assert nn.utils.clip_grad_norm_([plain], 0.3) > 0.3
        adam.step()
        adam.zero_grad()
    assert not torch.equal(matrix, plain)
    saved = {name: tensor.clone() for name, tensor in head.plugin_state().items()}
    head.settle()
    torch.testing.assert_close(matrix.detach(), plain.detach())
    again = ShardedGramHead(build_loss("taylor"), 32, optim)
    again.bind(nn.Parameter(torch.zeros(OUTPUTS, WIDTH)))
    again.load_plugin_state(saved)
    assert all(torch.equal(found, saved[name]) for name, found in again.plugin_state().items())


def test_cutoffs_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"head.cutoffs=\[10, 90\] do not fit a vocabulary of 50"):
        AdaptiveHead([10, 90], 4.0).bind(torch.empty(OUTPUTS, WIDTH))


def test_phases_move_with_the_applied_steps() -> None:
    taylor, softmax = GramHead(build_loss("taylor"), 1), SoftmaxHead()
    head = bound(PhasedHead([(0.75, taylor), (1.0, softmax)], steps=8), False)
    clock, batch, found = Clock(), inputs(), []
    for _ in range(9):
        head.begin_step(clock)
        found.append(head.active is softmax)
        expected = head.active(*batch)[0]
        assert torch.equal(head(*batch)[0], expected)
        clock.advance(StepResult.APPLIED, 4)
    assert found == [False] * 6 + [True] * 3  # after the end it stays what it was
    assert len(list(head.parameters())) == 0  # the tensors of this test are no Parameters
    assert torch.equal(head.log_prob(batch[0]), softmax.log_prob(batch[0]))


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("{kind: gram, loss: softmax}", "outside the spherical family: .* need every output"),
        ("{kind: factored, lr: 0.1, optimizer: adamw}", "'adamw': Adam .* use sgd"),
        ("{kind: phased, phases: [{until: 0.9, head: {kind: softmax}}, "
         "{until: 0.5, head: {kind: softmax}}]}", r"phases end at \[0.9, 0.5\]"),
        ("{kind: phased, phases: [{until: 0.5, head: {kind: adaptive, cutoffs: [10]}}, "
         "{until: 1, head: {kind: softmax}}]}", "cannot share one"),
        ("{kind: phased, phases: [{until: 0.5, head: {kind: gram, sharded: true}}, "
         "{until: 1, head: {kind: softmax}}]}", "head.sharded=true has matrices of its own"),
    ],
)  # fmt: skip
def test_wrong_heads_are_refused(tmp_path: Path, head: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(write_recipe(tmp_path, "transformer"), [f"head={head}"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "cannot share it with the embedding"),
        (["model.config.tie_word_embeddings=false", "optim.name=sgd"], "by AdamW, and optim.name"),
        (["model.config.tie_word_embeddings=false", "optim.options={amsgrad: true}"],
         "optim.options would not reach"),
        (["model.architecture=phi", "model.config={max_position_embeddings: 32, hidden_size: 16, "
          "num_attention_heads: 2, intermediate_size: 8, num_hidden_layers: 1}"], "has no bias"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_shared_are_refused(
    tmp_path: Path, overrides: list[str], words: str
) -> None:
    recipe = load_recipe(
        write_recipe(tmp_path, "transformer"), ["head={kind: gram, sharded: true}", *overrides]
    )
    with pytest.raises(RecipeError, match=words):
        meta_module(recipe)


@pytest.mark.parametrize("highest", [20, 8, 4])
def test_the_adaptive_loss_is_the_librarys_and_calls_every_cluster(highest: int) -> None:
    """Also those without a target, whose matrices other ranks may be waiting for."""
    torch.manual_seed(0)
    head = AdaptiveHead([5, 12], 2.0)
    head.bind(torch.zeros(20, 8))
    called: list[str] = []
    for name, module in head.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    hidden = torch.randn(3, 4, 8, requires_grad=True)
    targets, weights = torch.randint(highest, (3, 4)), torch.rand(3, 4)
    found, count = head.loss(hidden, targets, weights)
    assert sorted(called) == ["softmax.head", *(f"softmax.tail.{n}{part}" for n in (0, 1)
                                                for part in ("", ".0", ".1"))]  # fmt: skip
    output, _ = head.softmax(hidden.flatten(0, 1), targets.flatten())
    expected = -(output * weights.flatten()).sum()
    torch.testing.assert_close((found, count), (expected, weights.sum()))
    ours = torch.autograd.grad(found, [hidden, *head.parameters()])
    theirs = torch.autograd.grad(expected, [hidden, *head.parameters()], allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if other is None else other)
