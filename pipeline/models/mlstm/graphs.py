"""Windows replayed from CUDA graphs.

A window is thousands of launches, which a processor issues more slowly than a GPU runs them unless
lanes are many. A graph issues them all at once, but on fixed memory: inputs are copied in, results
copied out, and one window at a time has it, from its forward to its backward. The memory of a
captured window stays taken; LM_CUDA_GRAPHS=0 turns graphs off.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_EAGER_WINDOWS = 3  # of a shape before it is captured: a shape seen once is not worth its memory

Inputs = Sequence[Tensor | None]  # x, the five weights, c0, h0, resets


class WindowGraphs:
    """The graphs of one layer, by the shapes of a window's inputs."""

    def __init__(
        self,
        forward: Callable[..., tuple[Tensor, Tensor, Any]],
        backward: Callable[..., tuple[Tensor, ...]],
    ) -> None:
        self._functions = forward, backward
        self._seen: Counter[Any] = Counter()
        self._captured: dict[Any, _CapturedWindow] = {}

    def claim(self, inputs: Inputs) -> Replay | None:
        """The next replay for inputs of these shapes. None while they are new, and while another
        window's backward is still to come."""
        key = tuple(
            None if given is None else (given.shape, given.dtype, given.device) for given in inputs
        )
        self._seen[key] += 1
        if self._seen[key] <= _EAGER_WINDOWS:
            return None
        if key not in self._captured:
            self._captured[key] = _CapturedWindow(*self._functions, inputs)
        return self._captured[key].claim()


class Replay:
    """One window's claim on captured memory, given back by its backward or by being dropped."""

    def __init__(self, window: _CapturedWindow) -> None:
        self._window = window
        self.pending = True

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, H) and c_T (B, H)."""
        return self._window.forward(inputs)

    def backward(
        self, x: Tensor, weights: Sequence[Tensor], d_out: Tensor, d_c_last: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients; RuntimeError the second time. x and weights lie in the captured memory."""
        if not self.pending:
            raise RuntimeError("backward through this window has run before and used up its gates")
        self.pending = False
        return self._window.backward(d_out, d_c_last)


class _CapturedWindow:
    """Forward and backward of one shape as a graph each, and the memory that they work on."""

    def __init__(
        self,
        forward: Callable[..., tuple[Tensor, Tensor, Any]],
        backward: Callable[..., tuple[Tensor, ...]],
        inputs: Inputs,
    ) -> None:
        self._inputs = [
            None if given is None else given.detach().clone(memory_format=torch.contiguous_format)
            for given in inputs
        ]
        x, *weights, c0, h0, resets = self._inputs
        self._claim: Callable[[], Replay | None] = lambda: None
        # Capture allows neither compiling a kernel nor setting up a library: all has to have run.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            hidden, c_last, kept = forward(x, weights, c0, h0, resets)
            backward(kept, x, weights, hidden, c_last)
            del kept
        torch.cuda.current_stream().wait_stream(stream)
        self._d_out, self._d_c_last = torch.zeros_like(hidden), torch.zeros_like(c_last)
        del hidden, c_last
        # Other threads (loaders that pin memory, NCCL's watchdog) may go on meanwhile.
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward, capture_error_mode="thread_local"):
            *self._outputs, kept = forward(x, weights, c0, h0, resets)
        memory = self._forward.pool()
        with torch.cuda.graph(self._backward, pool=memory, capture_error_mode="thread_local"):
            self._gradients = backward(kept, x, weights, self._d_out, self._d_c_last)

    def claim(self) -> Replay | None:
        """None while the last claim is held by a window that may still go backward."""
        last = self._claim()
        if last is not None and last.pending:
            return None
        replay = Replay(self)
        self._claim = weakref.ref(replay)
        return replay

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Hidden states and c_T, in memory of their own."""
        for fixed, given in zip(self._inputs, inputs, strict=True):
            if fixed is not None and given is not None:
                fixed.copy_(given)
        self._forward.replay()
        hidden, c_last = (output.clone() for output in self._outputs)
        return hidden, c_last

    def backward(self, d_out: Tensor, d_c_last: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x, the weights, c0 and h0, in memory of their own."""
        self._d_out.copy_(d_out)
        self._d_c_last.copy_(d_c_last)
        self._backward.replay()
        return tuple(gradient.clone() for gradient in self._gradients)
