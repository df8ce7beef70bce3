"""The multiplicative LSTM over one window of tokens.

    m_t = (x_t Wmx) * (h_{t-1} Wmh)
    i, f, o, u = split(x_t Wx + m_t Wh + b)     sigmoid for i, f, o; tanh for u
    c_t = f * c_{t-1} + i * u                   h_t = o * tanh(c_t)

Krause et al. 2016; weight norm on the four recurrent matrices as in Radford et al. 2017 and Puri et
al. 2018. The state is carried from window to window by the caller, never kept in here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .window import MLSTMWindow
from .window_cpu import Pool

RECOMPUTED_STEPS = 32  # computed again at once, and kept for backward meanwhile


class MultiplicativeLSTM(nn.Module):
    """Stacked layers. State (B, layers, 2, H): c first, then h."""

    def __init__(
        self,
        input_size: int,
        hidden: int,
        layers: int = 1,
        weight_norm: bool = True,
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.layers = nn.ModuleList(
            MultiplicativeLSTMLayer(
                input_size if i == 0 else hidden, hidden, weight_norm, forget_bias
            )
            for i in range(layers)
        )

    @classmethod
    def from_config(cls, config: Any) -> MultiplicativeLSTM:
        """The layers of an `MLSTMConfig`."""
        return cls(
            config.embedding_size,
            config.hidden_size,
            config.num_hidden_layers,
            config.weight_norm,
            config.forget_bias,
        )

    def forward(
        self, x: Tensor, state: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, T, input) -> hidden states (B, T, H) and the state after the last token.

        `resets` (B, T) bool zeroes the state before a token. The returned state is detached:
        back-propagation is truncated at the window.
        """
        if state is None:
            state = x.new_zeros(x.shape[0], len(self.layers), 2, self.hidden)
        states = []
        for index, layer in enumerate(self.layers):
            x, last = layer(x, state[:, index], resets)
            states.append(last)
        return x, torch.stack(states, dim=1).detach()


class MultiplicativeLSTMLayer(nn.Module):
    """One layer; matrices are (outputs, inputs) as in `nn.Linear`, gates ordered i, f, o, u."""

    def __init__(self, input_size: int, hidden: int, weight_norm: bool, forget_bias: float) -> None:
        super().__init__()
        self.hidden = hidden
        self.w_mx = NormedMatrix(hidden, input_size, hidden, weight_norm)
        self.w_mh = NormedMatrix(hidden, hidden, hidden, weight_norm)
        self.w_x = NormedMatrix(4 * hidden, input_size, hidden, weight_norm)
        self.w_h = NormedMatrix(4 * hidden, hidden, hidden, weight_norm)
        self.bias = nn.Parameter(torch.empty(4 * hidden))
        bound = 1 / math.sqrt(hidden)
        nn.init.uniform_(self.bias, -bound, bound)
        with torch.no_grad():
            self.bias[hidden : 2 * hidden] += forget_bias
        self._pool = Pool()
        self._ready: tuple[Any, tuple[Tensor, Tensor, Tensor]] | None = None
        self.recomputes = False

    def train(self, mode: bool = True) -> MultiplicativeLSTMLayer:
        self._ready = None
        return super().train(mode)

    def forward(self, x: Tensor, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        alone = x.shape[1] == 1 and x.device.type == "cpu" and resets is None
        if alone and not self.training and not torch.is_grad_enabled():
            return self._step(x[:, 0], state)
        weights = (self.w_mx(), self.w_x(), self.bias, self.w_mh(), self.w_h())
        c, h = state.unbind(1)
        steps_first = x.transpose(0, 1).contiguous()
        if not self.recomputes:
            hidden, c = MLSTMWindow.apply(steps_first, *weights, c, h, resets, self._pool, False)
            return hidden, torch.stack([c, hidden[:, -1]], dim=1)
        parts = []
        for first in range(0, len(steps_first), RECOMPUTED_STEPS):
            steps = slice(first, first + RECOMPUTED_STEPS)
            part_resets = None if resets is None else resets[:, steps]
            part, c = MLSTMWindow.apply(
                steps_first[steps], *weights, c, h, part_resets, self._pool, True
            )
            h = part[:, -1]
            parts.append(part)
        return torch.cat(parts, dim=1), torch.stack([c, h], dim=1)

    def _step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token in generation: x (B, E) -> h (B, 1, H) and the state."""
        w_mx, w_mh, w_z = self._ready_weights()
        c, h = state.unbind(1)
        m = nn.functional.linear(x, w_mx) * nn.functional.linear(h, w_mh)
        z = nn.functional.linear(torch.cat([m, x], dim=1), w_z, self.bias)
        i, f, o, u = z.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * u.tanh()
        h = o.sigmoid() * c.tanh()
        return h.unsqueeze(1), torch.stack([c, h], dim=1)

    def _ready_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """w_mx, w_mh and [w_h w_x], kept from token to token: making them costs several times what
        a token does. Made again when a weight was replaced or written to."""
        key = [(id(p), p.data_ptr(), p._version) for p in self.parameters()]
        if self._ready is None or self._ready[0] != key:
            w_z = torch.cat([self.w_h(), self.w_x()], dim=1)
            self._ready = key, (self.w_mx(), self.w_mh(), w_z)
        return self._ready[1]


class NormedMatrix(nn.Module):
    """A matrix whose rows (incoming weights of an output unit) are g * v / |v|, or plain v."""

    def __init__(self, rows: int, columns: int, hidden: int, weight_norm: bool) -> None:
        super().__init__()
        bound = 1 / math.sqrt(hidden)
        self.v = nn.Parameter(torch.empty(rows, columns).uniform_(-bound, bound))
        # The gain starts at |v|, so that the matrix starts at v.
        self.g = nn.Parameter(self.v.detach().norm(dim=1)) if weight_norm else None

    def forward(self) -> Tensor:
        """The matrix, made once per window. Norms are taken in fp32: squares overflow in fp16."""
        if self.g is None:
            return self.v
        norm = self.v.float().norm(dim=1)
        scale = self.g.float() / (norm + (norm == 0))  # a row that masks leave empty stays 0
        return self.v * scale.to(self.v.dtype).unsqueeze(1)
