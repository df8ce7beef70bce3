"""The recurrent state between windows: one row per lane of this rank's share.

The state lives outside parameters and buffers, moves with the data position, and is saved as
(global_batch, ...), so that it can be loaded on another number of devices. For models without a
state everything here does nothing.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.data.order import rank_rows
from pipeline.protocols import Backbone
from pipeline.ranks import rank, world_size


class LaneStates:
    """States of the rows that this rank computes."""

    def __init__(self, backbone: Backbone, global_batch: int, device: torch.device) -> None:
        self._rows = rank_rows(global_batch, rank(), world_size())
        self._state = backbone.initial_state(len(self._rows), device)

    def get(self, rows: slice) -> Tensor | None:
        return None if self._state is None else self._state[rows]

    def put(self, rows: slice, state: Tensor | None) -> None:
        if self._state is not None:
            assert state is not None
            self._state[rows] = state.detach()

    def copy(self) -> Tensor | None:
        """The states as they are, to be restored."""
        return None if self._state is None else self._state.clone()

    def restore(self, states: Tensor | None) -> None:
        if self._state is not None:
            assert states is not None
            self._state.copy_(states)

    def zero(self) -> None:
        """Forget everything: after windows that were passed over, no state leads on."""
        if self._state is not None:
            self._state.zero_()

    def drop_nonfinite(self) -> None:
        """Zero the lanes that an overflow has poisoned."""
        if self._state is not None:
            bad = ~torch.isfinite(self._state).flatten(1).all(dim=1)
            self._state[bad] = 0

    def gather(self) -> dict[str, Tensor]:
        """All lanes, (global_batch, ...), on rank 0; elsewhere nothing. Collective."""
        if self._state is None:
            return {}
        if world_size() == 1:
            return {"state": self._state.cpu()}
        parts = (
            [torch.empty_like(self._state) for _ in range(world_size())] if rank() == 0 else None
        )
        dist.gather(self._state, parts, dst=0)
        return {} if parts is None else {"state": torch.cat(parts).cpu()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take this rank's rows of a saved (global_batch, ...) state."""
        if self._state is not None:
            self._state.copy_(tensors["state"][self._rows.start : self._rows.stop])
