"""Linear layers by the faster library against PyTorch's own in higher precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pipeline import products
from pipeline.models.linear import use_fast_products
from pipeline.products import linear, sum_of_outer

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@pytest.fixture(autouse=True, params=["own", "onednn"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As this processor has it, and by the other library."""
    if request.param == "onednn":
        if ONEDNN is None or not torch.backends.mkldnn.is_available():
            pytest.skip("this PyTorch has no oneDNN")
        monkeypatch.setattr(products, "_ONEDNN", ONEDNN)


def test_the_maker_of_the_processor_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for text, wanted in (("GenuineIntel", None), ("AuthenticAMD", ONEDNN)):
        monkeypatch.setattr(
            products.Path, "read_text", lambda path, text=text: f"vendor_id : {text}"
        )
        assert products._onednn() is wanted
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    monkeypatch.setattr(products.Path, "read_text", lambda path: "vendor_id : GenuineIntel")
    assert products._onednn() is ONEDNN
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert products._onednn() is None


def layer_of(kind: str, inputs: int, outputs: int) -> Any:
    torch.manual_seed(inputs * 100 + outputs)
    layer: Any = {
        "Linear": lambda: nn.Linear(inputs, outputs),
        "no bias": lambda: nn.Linear(inputs, outputs, bias=False),
        "Conv1D": lambda: Conv1D(outputs, inputs),
    }[kind]()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def through(layer: Any, x: Tensor, d_y: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], d_y)]


@pytest.mark.parametrize("kind", ["Linear", "no bias", "Conv1D"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (5, 2, 3), (64,)])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (5, 3), (48, 130)])
def test_a_layer_is_the_layer_in_double(
    kind: str, shape: tuple[int, ...], inputs: int, outputs: int
) -> None:
    layer = layer_of(kind, inputs, outputs)
    x, d_y = torch.randn(*shape, inputs), torch.randn(*shape, outputs)
    use_fast_products(layer)
    found = through(layer, x, d_y)
    wanted = through(layer.double(), x.double(), d_y.double())
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_any_layout_of_what_comes_in_and_back(kind: str) -> None:
    layer = layer_of(kind, 6, 4)
    use_fast_products(layer)
    x, d_y = torch.randn(6, 9).t(), torch.ones(1, 1).expand(9, 4)
    found = through(layer, x, d_y)
    for ours, theirs in zip(found, through(layer.double(), x.double(), d_y.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_gradients_nobody_asks_for_are_not_made() -> None:
    weight = torch.randn(3, 4)
    x = torch.randn(2, 4, requires_grad=True)
    linear(x, weight, None).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(x.grad, weight.sum(0).expand(2, 4))


def test_other_precisions_are_left_alone() -> None:
    layer = layer_of("Linear", 4, 3)
    use_fast_products(layer)
    assert layer.bfloat16()(torch.randn(2, 4).bfloat16()).dtype == torch.bfloat16
    assert layer.double()(torch.randn(0, 4).double()).shape == (0, 3)


def test_a_sum_of_outer_products() -> None:
    a, b = torch.randn(9, 3), torch.randn(9, 5)
    torch.testing.assert_close(sum_of_outer(a, b), torch.einsum("nm,nk->mk", a, b))
