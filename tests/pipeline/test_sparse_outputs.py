"""The public interface for very many outputs, against all outputs written out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_prep.errors import DataError
from pipeline.heads.outputs import FactoredOutputs, SparseOutputs
from pipeline.heads.spherical import taylor

ROOT = Path(__file__).parents[2]
OUTPUTS, WIDTH, EXAMPLES = 300, 6, 9


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def batch(targets: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.stack([torch.randperm(OUTPUTS)[:targets] for _ in range(EXAMPLES)])
    values = torch.randn(EXAMPLES, targets)
    values[3:, -1] = 0  # padding
    return torch.randn(EXAMPLES, WIDTH, requires_grad=True), ids, values


def dense(weight: Tensor, hidden: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    y = torch.zeros(EXAMPLES, OUTPUTS).scatter_add_(1, ids, values)
    return ((hidden @ weight.t() - y) ** 2).sum(dim=1)


def test_any_optimizer_sees_the_exact_gradient() -> None:
    outputs = SparseOutputs(WIDTH, OUTPUTS)
    weight = outputs.weight.detach().clone().requires_grad_()
    ours, theirs = (torch.optim.AdamW([w], lr=0.01) for w in (outputs.weight, weight))
    for _ in range(30):
        hidden, ids, values = batch()
        outputs(hidden, ids, values).mean().backward()
        outputs.write_gradient()
        ours.step()
        theirs.zero_grad()
        again = hidden.detach().clone().requires_grad_()
        dense(weight, again, ids, values).mean().backward()
        theirs.step()
        torch.testing.assert_close(hidden.grad, again.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.weight.detach(), weight.detach(), rtol=1e-3, atol=1e-4)


def test_the_factored_form_takes_sgd_steps() -> None:
    outputs = FactoredOutputs(WIDTH, OUTPUTS)
    weight = outputs.weight.detach().clone().requires_grad_()
    for _ in range(60):
        hidden, ids, values = batch()
        outputs(hidden, ids, values).mean().backward()
        norm = outputs.step(0.05, decay=0.1, clip_norm=0.5)
        gradient = torch.autograd.grad(dense(weight, hidden, ids, values).mean(), weight)[0]
        assert norm == pytest.approx(float(gradient.norm()), rel=1e-3)
        gradient *= min(1.0, 0.5 / float(gradient.norm()))
        weight.data = (1 - 0.05 * 0.1) * weight.data - 0.05 * gradient
    outputs.fold()
    torch.testing.assert_close(outputs.weight.detach(), weight.detach(), rtol=1e-3, atol=1e-4)
    with pytest.raises(TypeError, match="call step"):
        outputs.write_gradient()


def test_a_look_between_gradient_and_step_does_no_harm() -> None:
    outputs = SparseOutputs(WIDTH, OUTPUTS)
    optimizer = torch.optim.SGD(outputs.parameters(), lr=0.5)
    hidden, ids, values = batch()
    outputs(hidden, ids, values).mean().backward()
    outputs.write_gradient()
    with torch.no_grad():
        outputs(hidden, ids, values)
    optimizer.step()
    expected = dense(outputs.weight.detach(), hidden, ids, values)
    torch.testing.assert_close(outputs(hidden, ids, values), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [SparseOutputs, FactoredOutputs])
def test_weights_that_are_loaded_are_those_that_count(kind: type[SparseOutputs]) -> None:
    trained, outputs = kind(WIDTH, OUTPUTS), kind(WIDTH, OUTPUTS)
    hidden, ids, values = batch()
    for made in (trained, outputs):  # each has formed what it keeps of its matrix
        made(hidden, ids, values).mean().backward()
    if isinstance(trained, FactoredOutputs) and isinstance(outputs, FactoredOutputs):
        for made in (trained, outputs):
            made.step(lr=0.1)
        trained.fold()
    outputs.load_state_dict(trained.state_dict())
    expected = dense(trained.weight.detach(), hidden, ids, values)
    torch.testing.assert_close(outputs(hidden, ids, values), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [SparseOutputs, FactoredOutputs])
def test_topk_in_chunks_is_topk(kind: type[SparseOutputs]) -> None:
    outputs = kind(WIDTH, OUTPUTS)
    hidden = torch.randn(EXAMPLES, WIDTH)
    values, ids = outputs.topk(hidden, 5, rows_at_once=64)
    expected = (hidden @ outputs.weight.detach().t()).topk(5)
    torch.testing.assert_close(values, expected.values)
    assert torch.equal(ids, expected.indices)


def test_another_loss_of_the_family() -> None:
    outputs = SparseOutputs(WIDTH, OUTPUTS, taylor())
    hidden, ids, _ = batch(targets=1)
    o = hidden @ outputs.weight.t()
    p = 1 + o + o * o / 2
    expected = -(p.gather(1, ids).squeeze(1) / p.sum(dim=1)).log()
    torch.testing.assert_close(outputs(hidden, ids), expected)


@pytest.mark.parametrize("kind", [SparseOutputs, FactoredOutputs])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h, i, v: (h, i + OUTPUTS, v), "outside \\[0, 300\\)"),
        (lambda h, i, v: (h, i - OUTPUTS, v), "outside \\[0, 300\\)"),
        (lambda h, i, v: (h, i, v[:, :2]), r"values are \(9, 2\), targets \(9, 4\)"),
        (lambda h, i, v: (h, i[:5], v[:5]), r"targets are \(5, 4\) for 9 examples"),
        (lambda h, i, v: (h * float("nan"), i, v), "hidden holds numbers that are not finite"),
        (lambda h, i, v: (h, i, v / 0), "values holds numbers that are not finite"),
    ],
)
def test_bad_input_changes_nothing(kind: type[SparseOutputs], change, words: str) -> None:  # type: ignore[no-untyped-def]
    outputs = kind(WIDTH, OUTPUTS)
    before = outputs.weight.detach().clone()
    with pytest.raises(DataError, match=words):
        outputs(*change(*batch()))
    assert torch.equal(outputs.weight.detach(), before)


def test_the_example_runs_and_learns() -> None:
    done = subprocess.run(
        [sys.executable, "examples/bag_of_words.py", "--reviews", "400", "--epochs", "2"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [
        float(line.split()[-2].rstrip("%"))
        for line in done.stdout.splitlines()
        if "of its words" in line
    ]
    assert len(found) == 2 and found[-1] > 0
