"""The GPU half of the multiplicative LSTM window against the half for processors.

Without a GPU its kernels run in Triton's interpreter, which has to be chosen before Triton is
imported: `check_*` run in a process of their own.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from pipeline.models.mlstm import kernels, window_cpu, window_gpu
from pipeline.models.mlstm.cell import MultiplicativeLSTM
from pipeline.models.mlstm.graphs import Replay, WindowGraphs
from tests.pipeline.interpreter import assert_near, run_checks

triton = pytest.importorskip("triton", reason="triton is not installed")
ASTSource = pytest.importorskip("triton.compiler").ASTSource
GPUTarget = pytest.importorskip("triton.backends.compiler").GPUTarget
torch.set_num_threads(1)

NAMES = "hidden c_last x w_mx w_x bias w_mh w_h c0 h0".split()
NEXT_TO_A_BLOCK = 1025


class Window:
    """Random inputs of one window, in float64, and what comes back from above."""

    def __init__(self, steps: int, lanes: int, inputs: int, hidden: int, resets: bool) -> None:
        def rand(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=random) * scale

        random = torch.Generator().manual_seed(steps * 100 + lanes)
        narrow, wide = inputs**-0.5, hidden**-0.5
        self.x = rand(steps, lanes, inputs)
        self.weights = (
            rand(hidden, inputs, scale=narrow),
            rand(4 * hidden, inputs, scale=narrow),
            rand(4 * hidden),
            rand(hidden, hidden, scale=wide),
            rand(4 * hidden, hidden, scale=wide),
        )
        self.c0, self.h0 = rand(lanes, hidden), rand(lanes, hidden)
        self.resets = torch.rand(lanes, steps, generator=random) < 0.3 if resets else None
        if self.resets is not None:
            self.resets[0, 0] = self.resets[-1, -1] = True
        self.d_out, self.d_c_last = rand(lanes, steps, hidden), rand(lanes, hidden)

    def through(self, half: Any, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Both results and all gradients of one half, computed in `dtype`."""
        x, c0, h0, d_out, d_c_last, *weights = (
            t.to(dtype)
            for t in (self.x, self.c0, self.h0, self.d_out, self.d_c_last, *self.weights)
        )
        hidden, c_last, kept = half.forward(
            x, tuple(weights), c0, h0, self.resets, window_cpu.Pool(), True
        )
        gradients = half.backward(kept, x, tuple(weights), d_out, d_c_last)
        return dict(zip(NAMES, (hidden, c_last, *gradients), strict=True))


def test_the_kernels_in_tritons_interpreter() -> None:
    run_checks(__file__)


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(
    ("steps", "lanes", "inputs", "hidden"),
    [(6, 3, 5, 7), (1, 1, 1, 1), (1, 4, 3, 16), (5, 1, 2, 9), (2, 2, 3, NEXT_TO_A_BLOCK)],
)
def check_it_equals_the_half_for_processors(
    steps: int, lanes: int, inputs: int, hidden: int, resets: bool
) -> None:
    window = Window(steps, lanes, inputs, hidden, resets)
    assert_near(window.through(window_gpu, torch.float32), window.through(window_cpu), 5e-6)


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.04), (torch.float16, 0.004)])
def check_half_precision_stays_near_full(
    dtype: torch.dtype, tolerance: float, resets: bool
) -> None:
    """Eight steps of roundings by up to 2^-8 or 2^-11 of the value."""
    window = Window(8, 3, 5, 33, resets)
    got = window.through(window_gpu, dtype)
    assert all(values.dtype == dtype for values in got.values())
    assert_near(got, window.through(window_gpu, torch.float32), tolerance)


def check_a_reset_equals_starting_afresh_in_its_own_lane_only() -> None:
    window = Window(5, 2, 3, 4, False)
    plain = window.through(window_gpu, torch.float32)
    window.resets = torch.zeros(2, 5, dtype=torch.bool)
    window.resets[0, 2] = True
    got = window.through(window_gpu, torch.float32)
    assert torch.equal(got["hidden"][1], plain["hidden"][1])
    assert torch.equal(got["hidden"][0, :2], plain["hidden"][0, :2])
    window.x, window.d_out, window.resets = window.x[2:], window.d_out[:, 2:], None
    window.c0, window.h0 = torch.zeros(2, 4), torch.zeros(2, 4)
    fresh = window.through(window_gpu, torch.float32)
    torch.testing.assert_close(got["hidden"][0, 2:], fresh["hidden"][0])
    torch.testing.assert_close(got["x"][2:, 0], fresh["x"][:, 0])


def check_a_reset_first_lets_no_gradient_through() -> None:
    window = Window(3, 2, 3, 4, True)
    window.resets = torch.tensor([[True, False, False], [False, False, False]])
    got = window.through(window_gpu, torch.float32)
    for name in ("c0", "h0"):
        assert (got[name][0] == 0).all() and (got[name][1] != 0).all()


def check_two_windows_with_a_carried_state_equal_a_long_one() -> None:
    window = Window(7, 2, 3, 5, True)
    whole = window.through(window_gpu, torch.float32)
    x, d_out, resets = window.x, window.d_out, window.resets
    window.x, window.d_out, window.resets = x[:3], d_out[:, :3], resets[:, :3]
    first = window.through(window_gpu, torch.float32)
    window.x, window.d_out, window.resets = x[3:], d_out[:, 3:], resets[:, 3:]
    window.c0, window.h0 = first["c_last"], first["hidden"][:, -1]
    second = window.through(window_gpu, torch.float32)
    torch.testing.assert_close(torch.cat([first["hidden"], second["hidden"]], 1), whole["hidden"])
    torch.testing.assert_close(second["c_last"], whole["c_last"])


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.transpose(0, 1).contiguous().transpose(0, 1),  # steps first
        lambda d: d.transpose(1, 2).contiguous().transpose(1, 2),  # features far apart
        lambda d: d[:1, :1, :1].expand_as(d),  # what a sum gives back
        lambda d: torch.cat([d, d], dim=2)[:, :, : d.shape[2]],
    ],
)
def check_gradients_may_come_at_any_stride(change: Callable[[Tensor], Tensor]) -> None:
    window = Window(4, 3, 2, 6, True)
    window.d_out = change(window.d_out)
    window.d_c_last = window.d_c_last.t().contiguous().t()
    assert_near(window.through(window_gpu, torch.float32), window.through(window_cpu), 5e-6)


def check_weights_and_state_may_lie_at_any_stride() -> None:
    window = Window(3, 2, 4, 5, False)
    window.weights = tuple(  # type: ignore[assignment]
        w.t().contiguous().t() for w in window.weights
    )
    state = torch.stack([window.c0, window.h0], dim=1)
    window.c0, window.h0 = state.unbind(1)
    assert_near(window.through(window_gpu, torch.float32), window.through(window_cpu), 5e-6)


def check_a_second_backward_is_refused() -> None:
    x, c, w = torch.randn(2, 1, 1), torch.zeros(1, 1), torch.randn(4, 1)
    weights = (w[:1], w, w[:, 0], w[:1], w)
    out, c_last, kept = window_gpu.forward(x, weights, c, c, None, window_cpu.Pool(), True)
    window_gpu.backward(kept, x, weights, out, c_last)
    with pytest.raises(RuntimeError, match="has run before"):
        window_gpu.backward(kept, x, weights, out, c_last)


def test_without_triton_the_kernels_import_and_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    without = runpy.run_path(kernels.__file__)
    with pytest.raises(RuntimeError, match="pip install triton"):
        without["multiply_backward"](*torch.ones(3, 1, 1))


@pytest.mark.parametrize("value", ["*fp32", "*fp16", "*bf16"])
@pytest.mark.parametrize("resets", [True, False])
def test_the_kernels_compile_for_a_gpu(value: str, resets: bool) -> None:
    """The compiler refuses what the interpreter lets pass, and needs no GPU."""
    absent = set() if resets else {"resets", "resets_after", "d_h"}
    types = {"c_before": "*fp32", "c": "*fp32", "d_c": "*fp32", "size": "i32"}
    types |= {"hidden_stride": "i64", "d_hidden_stride": "i64"}
    types |= {"resets": "*u8", "resets_after": "*u8"}
    for kernel in (kernels._gates_forward, kernels._gates_backward, kernels._multiply_backward):
        constants = {name: None for name in kernel.arg_names if name in absent} | {"BLOCK": 1024}
        signature = {
            name: "constexpr" if name in constants else types.get(name, value)
            for name in kernel.arg_names
        }
        source = ASTSource(kernel, signature, constants)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


class FakeGraph:
    """What is launched while it is captured runs at every replay, and not before."""

    capturing: FakeGraph | None = None

    def __init__(self) -> None:
        self.launches: list[Callable[[], Any]] = []

    @classmethod
    def launch(cls, kernel: Callable[[], Any]) -> None:
        if cls.capturing is None:
            kernel()
        else:
            cls.capturing.launches.append(kernel)

    def replay(self) -> None:
        for kernel in self.launches:
            kernel()

    def pool(self) -> None:
        """The memory that both graphs share."""


@contextmanager
def fake_capture(graph: FakeGraph, **_: Any) -> Iterator[None]:
    FakeGraph.capturing = graph
    yield
    FakeGraph.capturing = None


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> WindowGraphs:
    """Graphs of a window in which h = 2 x + c0, and dx = 2 dh + x, from the x of the forward."""

    def forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        (_, c0, *_), hidden, c_last, kept = rest, *(torch.zeros_like(x) for _ in range(3))
        FakeGraph.launch(lambda: hidden.copy_(2 * x + c0))
        FakeGraph.launch(lambda: c_last.copy_(c0 + 1))
        FakeGraph.launch(lambda: kept.copy_(x))
        return hidden, c_last, kept

    def backward(kept: Tensor, x: Tensor, weights: Any, d_out: Tensor, _: Any) -> tuple[Tensor]:
        d_x = torch.zeros_like(kept)
        FakeGraph.launch(lambda: d_x.copy_(2 * d_out + kept))
        FakeGraph.launch(lambda: kept.zero_())
        return (d_x,)

    for name, fake in {
        "CUDAGraph": FakeGraph, "graph": fake_capture, "Stream": MagicMock(),
        "current_stream": MagicMock(), "stream": lambda _: nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    return WindowGraphs(forward, backward)


def inputs_of(value: float, size: int = 2) -> list[Tensor | None]:
    """x, five weights, c0, h0 and no resets."""
    return [torch.full((size,), value), *torch.zeros(5, size), *torch.ones(2, size), None]


def begin(graphs: WindowGraphs, value: float) -> tuple[Replay, Tensor]:
    replay = graphs.claim(inputs_of(value))
    assert replay is not None
    return replay, replay.forward(inputs_of(value))[0]


def test_a_window_is_captured_once_its_shape_has_come_back(graphs: WindowGraphs) -> None:
    assert [graphs.claim(inputs_of(1.0)) is None for _ in range(4)] == [True] * 3 + [False]
    assert graphs.claim(inputs_of(1.0, size=3)) is None


def test_a_replay_takes_new_inputs_and_keeps_old_results(graphs: WindowGraphs) -> None:
    for _ in range(3):
        graphs.claim(inputs_of(0.0))
    results = []
    for value in (1.0, 5.0):
        replay, hidden = begin(graphs, value)
        (d_x,) = replay.backward(hidden, [], torch.full((2,), 10 * value), torch.zeros(2))
        results += [hidden, d_x]
    assert [r[0].item() for r in results] == [2 + 1, 20 + 1, 10 + 1, 100 + 5]


def test_captured_memory_is_for_one_window_at_a_time(graphs: WindowGraphs) -> None:
    for _ in range(3):
        graphs.claim(inputs_of(0.0))
    replay, hidden = begin(graphs, 1.0)
    assert graphs.claim(inputs_of(2.0)) is None
    replay.backward(hidden, [], hidden, hidden)
    with pytest.raises(RuntimeError, match="has run before"):
        replay.backward(hidden, [], hidden, hidden)
    dropped, _ = begin(graphs, 3.0)
    del dropped  # a window whose loss nobody asked for
    assert begin(graphs, 4.0)


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_windows_equal_eager_ones(
    cuda: torch.device, dtype: torch.dtype, with_resets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten windows of two layers with their state carried, from the fourth on from graphs; in the
    eighth two are under way at once, so that one of them cannot be replayed."""

    def run(graphs: str) -> list[Tensor]:
        monkeypatch.setenv("LM_CUDA_GRAPHS", graphs)
        torch.manual_seed(0)
        network, state, results = MultiplicativeLSTM(5, 33, 2).to(cuda, dtype), None, []
        for number in range(10):
            x = torch.randn(3, 6, 5, device=cuda, dtype=dtype, requires_grad=True)
            resets = torch.rand(3, 6, device=cuda) < 0.3 if with_resets else None
            out, state = network(x, state, resets)
            if number == 7:
                out = out + network(x, None, resets)[0]
            network.zero_grad()
            (out * torch.randn_like(out)).sum().backward()
            results += [out.detach(), state, x.grad, *(p.grad for p in network.parameters())]
        return results

    for replayed, eager in zip(run("1"), run("0"), strict=True):
        torch.testing.assert_close(replayed, eager)


@pytest.mark.gpu
def test_the_halves_agree_on_a_gpu(cuda: torch.device) -> None:
    window = Window(6, 3, 5, NEXT_TO_A_BLOCK, True)
    wanted = window.through(window_cpu)
    window.resets = window.resets.to(cuda)
    for name in ("x", "c0", "h0", "d_out", "d_c_last"):
        setattr(window, name, getattr(window, name).to(cuda))
    window.weights = tuple(w.to(cuda) for w in window.weights)  # type: ignore[assignment]
    got = window.through(window_gpu, torch.float32)
    assert_near({name: values.cpu() for name, values in got.items()}, wanted, 5e-6)
