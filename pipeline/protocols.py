"""The seams: what a head, an engine, a backbone and a step plug-in must offer, and nothing more.

Everything that trains meets here. A method of a paper is a `Head` or a `StepPlugin`; it never needs
to know which ZeRO stage or how many ranks it runs under, because the `Engine` answers for that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.clock import Clock, StepResult
from pipeline.flops import Flops

_TOKENS_AT_ONCE = 64


class Backbone(nn.Module, ABC):
    """A language model up to its last hidden states.

    `forward(inputs, state, resets) -> (hidden, state)` with inputs (B, T) int64, hidden (B, T, d),
    state None or (B, ...) in the model's dtype, resets None or (B, T) bool: True where the state is
    zeroed before that token is read.
    """

    recurrent: bool = False
    causal_lm: Any  # the `transformers` model that is exported

    @abstractmethod
    def initial_state(self, rows: int, device: torch.device) -> Tensor | None:
        """The state of `rows` fresh lanes, or None for models without one."""

    @abstractmethod
    def output_weight(self) -> Tensor | None:
        """The (vocabulary, d) output matrix for the head to bind, or None."""

    @abstractmethod
    def output_bias(self) -> Tensor | None:
        """The (vocabulary,) bias beside it, or None."""

    def logit_scale(self) -> float:
        """Factor that the architecture puts on its logits."""
        return 1.0

    def logit_softcap(self) -> float | None:
        """Soft-capping of the logits, cap * tanh(logits / cap), or None."""
        return None

    @abstractmethod
    def recompute_activations(self) -> None:
        """From now on keep little of a forward for its backward, and compute it again there."""

    @abstractmethod
    def flops(self, window: int) -> Flops:
        """Dense forward FLOPs of one token in a window of `window` tokens; the head's are 0."""


class Engine(Protocol):
    """What trains: DeepSpeed, or PyTorch's DDP. All methods are collective: every rank must call
    them."""

    module: nn.Module
    rank: int
    world_size: int
    device: torch.device

    def forward(self, *inputs: Any) -> Any: ...
    def backward(self, loss: Tensor, last: bool) -> None: ...
    def step(self) -> StepResult: ...
    def discard(self) -> None:
        """Throw the accumulated gradients away; weights and optimizer stay as they are."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Around forward and backward of every micro-batch but the last."""

    lr: float  # the rate last set

    def set_lr(self, lr: float) -> None: ...
    @property
    def grad_norm(self) -> float | None: ...
    @property
    def loss_scale(self) -> float: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    # Full tensors in fp32 on every rank, whatever the ZeRO stage and the precision.
    def get_gradient(self, parameter: nn.Parameter) -> Tensor: ...
    def set_gradient(self, parameter: nn.Parameter, value: Tensor) -> None: ...
    def get_parameter(self, parameter: nn.Parameter) -> Tensor: ...
    def set_parameter(self, parameter: nn.Parameter, value: Tensor) -> None: ...
    def moments(self) -> list[str]:
        """Names of what the optimizer keeps of weights; none before its first step."""

    def get_moment(self, parameter: nn.Parameter, key: str) -> Tensor | None:
        """None where nothing of that name is kept of this parameter."""

    def set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None: ...

    def snapshot(self, copy: bool) -> Any:
        """What this rank has to save, a `pipeline.train.piece_files.Snapshot`."""

    def restore(self, saved: Any) -> None:
        """Go on from a `pipeline.train.piece_files.SavedPieces`."""


class Head(nn.Module, ABC):
    """Hidden states and targets in, summed loss and token count out.

    A head may own tensors that neither ZeRO nor the optimizer sees (`owned_parameters`): it trains
    them itself in `finish_accumulation` or `after_step` and saves them in `plugin_state`.
    """

    has_probabilities = True  # the loss is minus the log-probability of the targets
    phase: int = 0  # of those that it goes through; the loss may jump where it changes

    @abstractmethod
    def bind(self, output_weight: Tensor | None, output_bias: Tensor | None = None) -> None:
        """Take the backbone's output matrix, or make one of its own when there is none."""

    @abstractmethod
    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of weighted token losses in nats and the sum of weights.

        hidden (B, T, d), targets (B, T) int64, weights (B, T); weight 0 is padding.
        """

    def forward(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        # ZeRO-3 gathers a module's own weights when the module is *called*: the loss is that call.
        return self.loss(hidden, targets, weights)

    def begin_step(self, clock: Clock) -> None:
        """Where the run stands: before every step, and after a checkpoint was loaded."""

    @abstractmethod
    def log_prob(self, hidden: Tensor) -> Tensor:
        """Log-probabilities (..., vocabulary) in fp32 under the trained loss.

        Without probabilities, the log-softmax of what the outputs are ranked by.
        """

    def scores(self, logits: Tensor) -> Tensor:
        """Log-probabilities, less a constant of each row, from the architecture's own logits."""
        return logits

    def settle(self) -> None:
        """Before an export: what was trained out of the backbone's sight goes into its matrix."""

    def export_settings(self) -> dict[str, Any]:
        """What `pipeline.export.scored` must know to do what `scores` does; empty for logits."""
        return {}

    def topk(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest log-probabilities (..., k) of hidden (..., d), and their ids."""
        # A few tokens at a time: all outputs of all tokens may be more than memory holds.
        parts = [self.log_prob(h).topk(k) for h in hidden.flatten(0, -2).split(_TOKENS_AT_ONCE)]
        values = torch.cat([found.values for found in parts])
        ids = torch.cat([found.indices for found in parts])
        return values.view(*hidden.shape[:-1], k), ids.view(*hidden.shape[:-1], k)

    def finish_accumulation(self, engine: Engine) -> None:
        """After the last backward of a step, before clipping: may write full gradients."""

    def after_step(self, result: StepResult) -> None:
        """Told how the step ended."""

    def owned_parameters(self) -> dict[str, Tensor]:
        """Tensors the head trains itself, kept away from ZeRO and the optimizer."""
        return {}

    def plugin_state(self) -> dict[str, Tensor]:
        """Tensors for `plugins/head.safetensors`; by default the owned parameters."""
        return self.owned_parameters()

    def load_plugin_state(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self.owned_parameters().items():
            tensor.copy_(tensors[name])

    @abstractmethod
    def flops(self, clock: Clock) -> float:
        """Counted forward FLOPs per token at this point of the run."""

    @abstractmethod
    def dense_flops(self) -> float:
        """Forward FLOPs per token of a dense softmax over the same vocabulary."""


class StepPlugin:
    """A method that looks over the shoulder of training. Subclass and override what is needed."""

    name = "plugin"
    phase: int = 0  # of those that it goes through; the loss may jump where it changes

    def setup(self, model: nn.Module) -> None:
        """Before the engine exists: register masks, wrap modules, remember parameters."""

    def before_iteration(self, engine: Engine, clock: Clock) -> None:
        """Before the first micro-batch of a global batch."""

    passes: int = 1  # over each batch; with 2, `second_pass` is called

    def second_pass(self, engine: Engine, clock: Clock) -> bool:
        """With the reduced gradients of the batch at hand: whether it is gone through once more, at
        weights that this method has set. The gradients at hand are then thrown away."""
        return False

    def after_backward(self, engine: Engine, clock: Clock) -> StepResult | None:
        """With the reduced gradients at hand. Returning TOPOLOGY uses them up: no weight update."""
        return None

    def after_step(self, engine: Engine, clock: Clock, result: StepResult) -> None:
        """After the step, before the clock moves."""

    def metrics(self, clock: Clock) -> dict[str, float]:
        """Values for the metrics line of this step."""
        return {}

    def count(self, clock: Clock, flops: Flops) -> Flops:
        """What a token of this iteration costs in training, given what it costs without this."""
        return flops

    def status(self, clock: Clock) -> str:
        """A word for the console line of a step."""
        return ""

    def plugin_state(self) -> dict[str, Tensor]:
        """Tensors for `plugins/NAME.safetensors`; must be equal on all ranks."""
        return {}

    def load_plugin_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `plugin_state` gave."""
