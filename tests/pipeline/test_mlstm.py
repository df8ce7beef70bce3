"""The multiplicative LSTM against its equations, written out one number at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.models.build import MLSTMBackbone, build_backbone, parameter_count
from pipeline.models.mlstm.cell import MultiplicativeLSTM, MultiplicativeLSTMLayer, NormedMatrix
from pipeline.recipe.model import MLSTMConfig

torch.set_num_threads(1)


def make(
    inputs: int = 3, hidden: int = 4, layers: int = 1, norm: bool = True, seed: int = 0
) -> MultiplicativeLSTM:
    """A network in float64 whose gains are no longer the norms they start at."""
    torch.manual_seed(seed)
    network = MultiplicativeLSTM(inputs, hidden, layers, norm).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".g"):
                parameter.mul_(0.5 + torch.rand_like(parameter))
    return network


def random_resets(rows: int, window: int) -> Tensor:
    return torch.rand(rows, window) < 0.3


def slow_matrix(matrix: NormedMatrix) -> list[list[float]]:
    rows = matrix.v.tolist()
    if matrix.g is None:
        return rows
    norms = [math.sqrt(sum(x * x for x in row)) for row in rows]
    return [
        [g * x / norm for x in row]
        for g, norm, row in zip(matrix.g.tolist(), norms, rows, strict=True)
    ]


def slow_product(matrix: list[list[float]], vector: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_layer(
    layer: MultiplicativeLSTMLayer, x: list, state: list, resets: list
) -> tuple[list, list]:
    """One lane: x[t] is the input, state is [c, h], resets[t] says whether to zero before t."""
    wmx, wmh, wx, wh = (slow_matrix(m) for m in (layer.w_mx, layer.w_mh, layer.w_x, layer.w_h))
    n = layer.hidden
    c, h = state
    out = []
    for x_t, zeroed in zip(x, resets, strict=True):
        if zeroed:
            c, h = [0.0] * n, [0.0] * n
        m = [a * b for a, b in zip(slow_product(wmx, x_t), slow_product(wmh, h), strict=True)]
        z = [
            a + b + c_
            for a, b, c_ in zip(
                slow_product(wx, x_t), slow_product(wh, m), layer.bias.tolist(), strict=True
            )
        ]
        for k in range(n):
            i, f, o, u = (z[gate * n + k] for gate in range(4))
            c = [*c[:k], sigmoid(f) * c[k] + sigmoid(i) * math.tanh(u), *c[k + 1 :]]
            h = [*h[:k], sigmoid(o) * math.tanh(c[k]), *h[k + 1 :]]
        out.append(h)
    return out, [c, h]


def slow_network(network: MultiplicativeLSTM, x: Tensor, state: Tensor, resets: Tensor) -> tuple:
    outs, states = [], []
    for row in range(len(x)):
        values, last = x[row].tolist(), []
        for number, layer in enumerate(network.layers):
            assert isinstance(layer, MultiplicativeLSTMLayer)
            begin = state[row, number].tolist()
            values, end = slow_layer(layer, values, begin, resets[row].tolist())
            last.append(end)
        outs.append(values)
        states.append(last)
    return torch.tensor(outs, dtype=torch.float64), torch.tensor(states, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 3), window=st.integers(1, 5), layers=st.integers(1, 3),
    norm=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_the_network_follows_its_equations(
    rows: int, window: int, layers: int, norm: bool, seed: int
) -> None:
    network = make(layers=layers, norm=norm, seed=seed)
    x = torch.randn(rows, window, 3, dtype=torch.float64)
    state = torch.randn(rows, layers, 2, 4, dtype=torch.float64)
    resets = random_resets(rows, window)
    with torch.no_grad():
        got = network(x, state, resets)
    for mine, slow in zip(got, slow_network(network, x, state, resets), strict=True):
        # Norms are taken in fp32 whatever the weights are.
        torch.testing.assert_close(mine, slow, rtol=0, atol=1e-12 if not norm else 1e-6)


@pytest.mark.parametrize("with_resets", [True, False])
def test_gradients_are_those_of_the_equations(with_resets: bool) -> None:
    """Truncated at the window: the state it begins with is given, not learned through."""
    network = make(inputs=2, hidden=2, layers=2, norm=False)
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    resets = torch.tensor([[False, False, True], [True, False, False]]) if with_resets else None
    names = [name for name, _ in network.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(network, parameters, (x, state, resets))[0]

    assert torch.autograd.gradcheck(run, (x, *network.parameters()))


def test_gradients_of_weight_norm_are_those_of_its_formula() -> None:
    torch.manual_seed(0)
    matrix = NormedMatrix(5, 3, 4, True)
    with torch.no_grad():
        matrix.g.mul_(torch.rand(5) + 0.5)
    seed = torch.randn(5, 3)
    (matrix() * seed).sum().backward()
    v, g = (p.detach().double().requires_grad_() for p in (matrix.v, matrix.g))
    ((g[:, None] * v / (v * v).sum(1, keepdim=True).sqrt()) * seed).sum().backward()
    torch.testing.assert_close(matrix.v.grad.double(), v.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(matrix.g.grad.double(), g.grad, rtol=1e-5, atol=1e-6)


@given(cut=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_two_windows_with_a_carried_state_equal_a_long_one(cut: int, seed: int) -> None:
    network = make(layers=2, seed=seed)
    x, resets = torch.randn(2, 7, 3, dtype=torch.float64), random_resets(2, 7)
    with torch.no_grad():
        whole, end = network(x, None, resets)
        first, state = network(x[:, :cut], None, resets[:, :cut])
        second, last = network(x[:, cut:], state, resets[:, cut:])
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(last, end)


def test_a_reset_equals_starting_afresh_in_its_own_lane_only() -> None:
    network = make(layers=2)
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    resets = torch.zeros(2, 6, dtype=torch.bool)
    resets[0, 4] = True
    with torch.no_grad():
        out, _ = network(x, None, resets)
        fresh, _ = network(x[:, 4:])
        plain, _ = network(x)
    torch.testing.assert_close(out[0, 4:], fresh[0])
    torch.testing.assert_close(out[0, :4], plain[0, :4])
    torch.testing.assert_close(out[1], plain[1])
    assert not torch.allclose(out[0, 4:], plain[0, 4:])


def test_no_gradient_flows_over_the_edge_of_a_window_or_over_a_reset() -> None:
    network = make()
    x = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    out, state = network(x, None, torch.tensor([[False, False, True, False]]))
    assert not state.requires_grad
    out[:, 3].sum().backward()
    assert x.grad is not None
    assert (x.grad[0, :2] == 0).all() and (x.grad[0, 2:] != 0).all()


def test_forget_bias_is_added_to_the_second_block_only() -> None:
    def bias(value: float) -> Tensor:
        torch.manual_seed(0)
        return MultiplicativeLSTMLayer(3, 4, True, value).bias.detach()

    added = bias(2.5) - bias(0.0)
    torch.testing.assert_close(added, torch.tensor([0.0] * 4 + [2.5] * 4 + [0.0] * 8))


@pytest.mark.parametrize("weight_norm", [True, False])
def test_a_matrix_starts_at_v(weight_norm: bool) -> None:
    matrix = NormedMatrix(6, 5, 4, weight_norm)
    torch.testing.assert_close(matrix(), matrix.v)
    assert (matrix.g is not None) == weight_norm and matrix.v.abs().max() <= 0.5


def test_scaling_v_changes_nothing_and_scaling_g_scales_a_row() -> None:
    matrix = NormedMatrix(3, 5, 4, True)
    before = matrix().detach().clone()
    with torch.no_grad():
        matrix.v[0] *= 3
        matrix.g[1] *= 2
    after = matrix().detach()
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1], 2 * before[1])
    assert torch.equal(after[2], before[2])


def test_norms_do_not_overflow_in_fp16() -> None:
    matrix = NormedMatrix(2, 100, 4, True)
    with torch.no_grad():
        matrix.v.fill_(60.0)  # the sum of squares is far beyond 65504
        matrix.g.fill_(5.0)
    torch.testing.assert_close(matrix.half()(), torch.full((2, 100), 0.5).half())


@pytest.fixture
def backbone() -> MLSTMBackbone:
    torch.manual_seed(1)
    section = MLSTMConfig(kind="mlstm", hidden=12, embedding=6, layers=2)
    made = build_backbone(section, 256, 16, {})
    assert isinstance(made, MLSTMBackbone)
    with torch.no_grad():
        for parameter in made.parameters():  # far enough from zero for the best byte to vary
            parameter.mul_(4)
    return made.eval()


def test_generation_equals_taking_the_best_byte_step_by_step(backbone: MLSTMBackbone) -> None:
    model = backbone.causal_lm
    ids = torch.tensor([[72, 101, 108]])
    slow = ids
    with torch.no_grad():
        for _ in range(12):
            slow = torch.cat([slow, model(slow).logits[:, -1:].argmax(-1)], dim=1)
    made = model.generate(
        ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert made.tolist() == slow.tolist() and len(set(slow[0, 3:].tolist())) > 2


def test_the_backbone_gives_the_hidden_states_of_its_model(backbone: MLSTMBackbone) -> None:
    ids = torch.randint(256, (2, 9))
    hidden, state = backbone(ids, backbone.initial_state(2, torch.device("cpu")), None)
    out = backbone.causal_lm(ids)
    logits = hidden @ backbone.output_weight().t() + backbone.output_bias()
    torch.testing.assert_close(logits, out.logits)
    torch.testing.assert_close(state, out.state)
    assert state.shape == (2, 2, 2, 12)


def test_sizes_follow_the_recipe(backbone: MLSTMBackbone) -> None:
    h, e = 12, 6
    matrices = (h * e + h * h + 4 * h * e + 4 * h * h) + (h * h + h * h + 4 * h * h + 4 * h * h)
    vectors = 2 * (h + h + 4 * h + 4 * h + 4 * h)  # gains and biases
    assert backbone.flops(16) == (2 * matrices, 0, 0)
    assert parameter_count(backbone) == matrices + vectors + 256 * e + 256 * h + 256


def test_token_by_token_is_the_window_and_changed_weights_are_seen() -> None:
    network = make(layers=2).eval()
    x = torch.randn(3, 6, 3, dtype=torch.float64)

    def alone() -> Tensor:
        state, found = None, []
        with torch.no_grad():
            for step in x.split(1, dim=1):
                hidden, state = network(step, state)
                found.append(hidden)
        return torch.cat(found, dim=1)

    before = alone()
    torch.testing.assert_close(before, network(x)[0])  # with autograd: the window
    changes = (
        lambda: network.layers[0].w_mh.v.data.mul_(1.5),
        lambda: network.layers[1].w_h.g.mul_(1.5),
        lambda: network.load_state_dict(make(layers=2, seed=7).state_dict()),
    )
    for change in changes:
        with torch.no_grad():
            change()
        network.train()  # what a write through .data is told by
        network.eval()
        after = alone()
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, network(x)[0])
        before = after
    with torch.no_grad():
        network.layers[0].bias.add_(1.0)
        network.layers[0].w_x.g.mul_(2.0)
    torch.testing.assert_close(alone(), network(x)[0])  # told by the version of the weight alone
