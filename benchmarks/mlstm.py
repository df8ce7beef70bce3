"""Speed of the multiplicative LSTM, forward and backward of one window, beside its peers.

    python benchmarks/mlstm.py [--quick] [--json FILE] [--device cpu|cuda]

Peers, in the same run: the plain PyTorch loop of the same cell; the loop that indexes a hoisted
projection; `torch.nn.LSTM` with as many parameters (oneDNN or cuDNN); and the bare matrix products
of the cell alone, which is the bound. FLOPs are those of the recurrent and input matrices, three
times forward. On a processor also the generation of text.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.device import device_of, device_options, seconds
from benchmarks.harness import Row, interleaved, report, row
from pipeline.models.mlstm.cell import MultiplicativeLSTM, MultiplicativeLSTMLayer
from pipeline.models.mlstm.configuration_mlstm import MLSTMConfig
from pipeline.models.mlstm.modeling_mlstm import MLSTMForCausalLM
from pipeline.models.mlstm.products import product

_INPUTS = 64  # units of the embedding, as in the papers
_STEPS = 256
_CPU_CASES = [(hidden, batch) for hidden in (256, 512, 1024) for batch in (32, 128)]
_GPU_CASES = [(4096, batch) for batch in (128, 512, 2048)]
_WINDOWS_BEFORE_GRAPHS = 5  # more than the windows of a shape that a GPU runs before it captures
_MOST_LANES_OF_LOOPS = 1024  # 80 GB do not hold what autograd keeps of more, beside the other arms


class Case:
    """One width and batch, with an arm for ours and for each peer; an arm returns GFLOP/s."""

    def __init__(self, hidden: int, batch: int, steps: int, device: torch.device) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.device, self.steps, self.batch, self.hidden = device, steps, batch, hidden
        torch.manual_seed(0)
        self.network = MultiplicativeLSTM(_INPUTS, hidden).to(device, dtype)
        weights = self.network.named_parameters()
        parameters = sum(p.numel() for name, p in weights if not name.endswith(".g"))
        self.lstm_hidden = _lstm_hidden(parameters)
        self.lstm = nn.LSTM(_INPUTS, self.lstm_hidden).to(device, dtype)
        self.lstm.flatten_parameters()
        self.x = torch.randn(batch, steps, _INPUTS, device=device, dtype=dtype, requires_grad=True)
        self.gflop = 6 * 5 * hidden * (hidden + _INPUTS) * steps * batch / 1e9
        width = self.lstm_hidden
        self.lstm_gflop = 6 * 4 * width * (width + _INPUTS) * steps * batch / 1e9
        self.bare_gflop = 6 * 5 * hidden * hidden * steps * batch / 1e9
        # What comes from above is there before the clock starts.
        self.d_out = torch.randn(batch, steps, hidden, device=device, dtype=dtype)
        self.lstm_d_out = torch.randn(steps, batch, self.lstm_hidden, device=device, dtype=dtype)
        for _ in range(_WINDOWS_BEFORE_GRAPHS if device.type == "cuda" else 0):
            self.ours()

    def ours(self) -> float:
        """The network as it is trained, weight norm included."""
        return self.gflop / seconds(
            self.device, lambda: self._through(self.network(self.x)[0], self.d_out)
        )

    def plain_loop(self) -> float:
        """Autograd over the equations, weights prepared once."""
        return self.gflop / seconds(
            self.device, lambda: self._through(_plain_loop(self.network, self.x), self.d_out)
        )

    def indexed_loop(self) -> float:
        """The same, its projection made before the loop and indexed in it."""
        return self.gflop / seconds(
            self.device, lambda: self._through(_indexed_loop(self.network, self.x), self.d_out)
        )

    def torch_lstm(self) -> float:
        """The library's LSTM."""
        x = self.x.detach().transpose(0, 1).contiguous().requires_grad_()
        return self.lstm_gflop / seconds(
            self.device, lambda: self._through(self.lstm(x)[0], self.lstm_d_out)
        )

    def bare(self) -> float:
        """The recurrent products, and those of their gradients, without anything between."""
        return self._multiply(product)

    def bare_mm(self) -> float:
        """The same through `torch.mm`, whose library ours only takes where there is no faster."""
        return self._multiply(lambda a, b: torch.mm(a, b.t()))

    def _multiply(self, product: Callable[[Tensor, Tensor], Tensor]) -> float:
        # Made anew: with thousands of lanes they would leave no room for the other arms.
        shape = (self.hidden, self.batch, self.steps)
        operands = _Operands(*shape, self.device, self.d_out.dtype)
        return self.bare_gflop / seconds(self.device, lambda: operands.multiply(product))

    def _through(self, out: Tensor, d_out: Tensor) -> None:
        out.backward(d_out)
        for parameter in [*self.network.parameters(), *self.lstm.parameters(), self.x]:
            parameter.grad = None


class _Operands:
    """The recurrent products of a window, each way round as it is fastest here."""

    def __init__(
        self, hidden: int, batch: int, steps: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, dtype=dtype)

        self._steps = steps
        self._w_mh, self._w_h = random(hidden, hidden), random(4 * hidden, hidden)
        self._into = self._w_h.t().contiguous()
        self._h, self._z = random(hidden, batch), random(4 * hidden, batch)
        self._all_h = random(hidden, steps * batch)
        self._all_z = random(4 * hidden, steps * batch)

    def multiply(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Forward, backward, and the weight gradients as one product each."""
        for _ in range(self._steps):
            product(self._w_mh, self._h.t())
            product(self._w_h, self._h.t())
        for _ in range(self._steps):
            product(self._into, self._z.t())
            product(self._w_mh, self._h.t())
        product(self._all_z, self._all_h)
        product(self._all_h, self._all_h)


def _lstm_hidden(parameters: int) -> int:
    """Width of the LSTM that has about as many parameters, rounded up to 8."""
    width = 8
    while 4 * width * (width + _INPUTS) + 8 * width < parameters:
        width += 8
    return width


def _weights(network: MultiplicativeLSTM) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    layer = network.layers[0]
    assert isinstance(layer, MultiplicativeLSTMLayer)
    return layer.w_mx(), layer.w_x(), layer.bias, layer.w_mh(), layer.w_h()


def _plain_loop(network: MultiplicativeLSTM, x: Tensor) -> Tensor:
    w_mx, w_x, bias, w_mh, w_h = _weights(network)
    c = h = x.new_zeros(x.shape[0], network.hidden)
    out = []
    for x_t in x.unbind(1):
        m = nn.functional.linear(x_t, w_mx) * nn.functional.linear(h, w_mh)
        z = nn.functional.linear(x_t, w_x, bias) + nn.functional.linear(m, w_h)
        c, h = _gates(z, c)
        out.append(h)
    return torch.stack(out, dim=1)


def _indexed_loop(network: MultiplicativeLSTM, x: Tensor) -> Tensor:
    w_mx, w_x, bias, w_mh, w_h = _weights(network)
    mx = nn.functional.linear(x.transpose(0, 1), w_mx)
    zx = nn.functional.linear(x.transpose(0, 1), w_x, bias)
    c = h = x.new_zeros(x.shape[0], network.hidden)
    out = []
    for t in range(x.shape[1]):
        m = mx[t] * nn.functional.linear(h, w_mh)
        c, h = _gates(zx[t] + nn.functional.linear(m, w_h), c)
        out.append(h)
    return torch.stack(out, dim=1)


def _gates(z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, o, u = z.chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * u.tanh()
    return c, o.sigmoid() * c.tanh()


def case_rows(hidden: int, batch: int, device: torch.device, quick: bool) -> list[Row]:
    """The rows of one width and batch."""
    steps = 64 if quick else _STEPS
    case = Case(hidden, batch, steps, device)
    arms = {
        "ours": case.ours,
        "torch-lstm": case.torch_lstm,
        "plain-loop": case.plain_loop,
        "bare-products": case.bare,
        "bare-mm": case.bare_mm,
    }
    if device.type == "cuda":
        del arms["bare-mm"]  # which is what ours takes
    if batch > _MOST_LANES_OF_LOOPS:
        del arms["plain-loop"]
    found = interleaved(arms, 1 if quick else 5)
    name = f"mlstm H={hidden} B={batch} T={steps} {device.type}"
    ours = found["ours"]
    rows = [row(name, "GFLOP/s", ours, found[peer], peer) for peer in list(arms)[1:]]
    if not quick and hidden == 512:
        # Once: at 128 lanes it takes most of a minute.
        rows.append(row(name, "GFLOP/s", ours, case.indexed_loop(), "indexed-loop"))
    characters = steps * batch * ours / case.gflop
    return [*rows, row(name, "characters/s", characters)]


def generation_row(hidden: int, rounds: int) -> Row:
    """Text from the exported model on a processor, one byte after the other. The peer prepares the
    weights for every byte, as a window does, which a model in training mode is made of."""
    model = MLSTMForCausalLM(MLSTMConfig(hidden_size=hidden))
    start, count = torch.tensor([[10, 32, 84, 104]]), 20

    def arm(training: bool) -> float:
        model.train(training)
        began = time.process_time()
        model.generate(start, max_new_tokens=count, do_sample=False)
        return count / (time.process_time() - began)

    found = interleaved({"ours": lambda: arm(False), "windows": lambda: arm(True)}, rounds)
    name, metric = f"mlstm H={hidden} generate cpu", "characters/processor s"
    return row(name, metric, found["ours"], found["windows"], "windows")


def main() -> None:
    """Run the cases of the device."""
    arguments = device_options(__doc__ or "").parse_args()
    device = device_of(arguments)
    cases = _CPU_CASES if device.type == "cpu" else _GPU_CASES
    if arguments.quick:
        cases = [case for case in cases if case[0] == 512 or device.type == "cuda"]
    rows = []
    for hidden, batch in cases:
        rows += case_rows(hidden, batch, device, arguments.quick)
    if device.type == "cpu":
        rows.append(generation_row(1024, 1 if arguments.quick else 5))
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
