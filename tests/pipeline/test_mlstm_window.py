"""The window on a processor, in the precision and at the lengths it is trained with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.models.mlstm.cell import MultiplicativeLSTM, MultiplicativeLSTMLayer
from pipeline.models.mlstm.products import product

torch.set_num_threads(1)


def plain(network: MultiplicativeLSTM, x: Tensor, state: Tensor, resets: Tensor) -> Tensor:
    """The equations under autograd, a step at a time."""
    for number, layer in enumerate(network.layers):
        assert isinstance(layer, MultiplicativeLSTMLayer)
        w_mx, w_x, w_mh, w_h = layer.w_mx(), layer.w_x(), layer.w_mh(), layer.w_h()
        c, h = state[:, number].unbind(1)
        out = []
        for t in range(x.shape[1]):
            kept = (~resets[:, t, None]).to(x.dtype)
            c, h = c * kept, h * kept
            m = nn.functional.linear(x[:, t], w_mx) * nn.functional.linear(h, w_mh)
            z = nn.functional.linear(x[:, t], w_x, layer.bias) + nn.functional.linear(m, w_h)
            i, f, o, u = z.chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * u.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        x = torch.stack(out, dim=1)
    return x


def gradients(network: MultiplicativeLSTM, out: Tensor, x: Tensor, seed: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(out, [x, *network.parameters()], seed))


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 20), window=st.integers(1, 40), hidden=st.sampled_from([5, 16, 33]),
    inputs=st.sampled_from([2, 7, 16]), layers=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_single_precision_agrees_with_double(
    rows: int, window: int, hidden: int, inputs: int, layers: int, seed: int
) -> None:
    torch.manual_seed(seed)
    network = MultiplicativeLSTM(inputs, hidden, layers)
    x = torch.randn(rows, window, inputs, requires_grad=True)
    state = torch.randn(rows, layers, 2, hidden)
    resets = torch.rand(rows, window) < 0.1
    seed_gradient = torch.randn(rows, window, hidden)
    out, _ = network(x, state, resets)
    mine = [out, *gradients(network, out, x, seed_gradient)]

    network.double()
    x_double = x.detach().double().requires_grad_()
    expected = plain(network, x_double, state.double(), resets)
    theirs = [expected, *gradients(network, expected, x_double, seed_gradient.double())]
    for a, b in zip(mine, theirs, strict=True):
        # Under weight norm a gradient is a small difference of large terms.
        scale = max(float(b.detach().abs().max()), 0.1)
        torch.testing.assert_close(a.double() / scale, b / scale, rtol=0, atol=2e-5)


def test_gradients_of_the_state_that_a_window_begins_with() -> None:
    torch.manual_seed(0)
    layer = MultiplicativeLSTMLayer(3, 8, True, 0.0).double()
    x = torch.randn(2, 20, 3, dtype=torch.float64)
    state = torch.randn(2, 2, 8, dtype=torch.float64, requires_grad=True)
    resets = torch.zeros(2, 20, dtype=torch.bool)
    resets[1, 0] = True  # of this row nothing is left
    out, last = layer(x, state, resets)
    (found,) = torch.autograd.grad(out.sum() + last.sum(), state)
    assert found[0].abs().min() > 0
    assert not found[1].any()
    step = torch.zeros_like(state)
    step[0, 0, 3] = 1e-6
    with torch.no_grad():
        ends = [sum(p.sum() for p in layer(x, state + s, resets)) for s in (step, -step)]
    assert float(found[0, 0, 3]) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-5)


def test_one_step_at_a_time_is_the_whole_window() -> None:
    torch.manual_seed(1)
    network = MultiplicativeLSTM(4, 12, 2)
    x, state = torch.randn(3, 37, 4), None
    with torch.no_grad():
        whole, end = network(x)
        steps = []
        for t in range(37):
            out, state = network(x[:, t : t + 1], state)
            steps.append(out)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(state, end, rtol=0, atol=1e-6)


def test_windows_that_wait_for_their_backward_keep_their_own_memory() -> None:
    torch.manual_seed(2)
    network = MultiplicativeLSTM(4, 12)
    inputs = [torch.randn(3, 20, 4, requires_grad=True) for _ in range(3)]
    alone = []
    for x in inputs:
        alone.append(torch.autograd.grad(network(x)[0].square().sum(), x)[0])
    outs = [network(x)[0].square().sum() for x in inputs]  # all wait
    with torch.no_grad():
        network(inputs[0])  # an evaluation between
    for x, out, expected in reversed(list(zip(inputs, outs, alone, strict=True))):
        assert torch.equal(torch.autograd.grad(out, x)[0], expected)


def test_memory_is_taken_again_only_when_free() -> None:
    torch.manual_seed(3)
    network = MultiplicativeLSTM(4, 12)
    x = torch.randn(3, 20, 4, requires_grad=True)
    out = network(x)[0].sum()
    first = torch.autograd.grad(out, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(out, x, retain_graph=True)[0], first)
    later = network(x)[0].sum()
    with pytest.raises(RuntimeError, match="a later window has taken its buffers"):
        torch.autograd.grad(out, x)
    assert torch.equal(torch.autograd.grad(later, x)[0], first)


def test_what_is_returned_is_not_changed_later() -> None:
    torch.manual_seed(4)
    network = MultiplicativeLSTM(4, 12)
    with torch.no_grad():
        out, state = network(torch.randn(3, 20, 4))
        before = out.clone(), state.clone()
        network(torch.randn(3, 20, 4))
    assert torch.equal(out, before[0]) and torch.equal(state, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    a, b = torch.randn(37, 50).to(dtype), torch.randn(50, 20).to(dtype)
    expected = a.double() @ b.double()
    atol = 0.2 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(product(a, b.t()).double(), expected, rtol=0, atol=atol)
    torch.testing.assert_close(product(a, b.t().contiguous()).double(), expected, rtol=0, atol=atol)


def test_half_precision_follows_single() -> None:
    torch.manual_seed(6)
    network = MultiplicativeLSTM(8, 32)
    x = torch.randn(4, 40, 8)
    with torch.no_grad():
        single, _ = network(x)
        half, _ = network.bfloat16()(x.bfloat16())
    torch.testing.assert_close(half.float(), single, rtol=0, atol=0.05)
