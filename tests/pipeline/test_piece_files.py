"""Pieces in files: put together from any division, refused when something lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.errors import DataError
from pipeline.train.piece_files import SavedPieces, snapshot, write
from pipeline.train.pieces import Piece

SHAPE = torch.Size([7, 3])


def pieces_of(cuts: list[int]) -> list[Piece]:
    """One parameter and its moment, cut at these places."""
    weight, moment = torch.arange(21.0), -torch.arange(21.0)
    edges = [0, *sorted({*cuts} - {0, 21}), 21]
    state = {"exp_avg": moment, "step": torch.tensor(3.0)}
    return [
        Piece("w", SHAPE, low, weight[low:high], state, low)
        for low, high in zip(edges, edges[1:], strict=False)
    ]


def save(folder: Path, pieces: list[Piece]) -> SavedPieces:
    (folder / "state").mkdir(parents=True, exist_ok=True)
    for rank, piece in enumerate(pieces):
        write(snapshot([piece], {"tied": {"v": "w"}}, copy=True), folder, rank)
    return SavedPieces.open(folder)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cuts=st.lists(st.integers(1, 20), max_size=4), low=st.integers(0, 20), size=st.integers(1, 21)
)
def test_any_run_is_read_from_any_division(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], low: int, size: int
) -> None:
    saved = save(tmp_path_factory.mktemp("c"), pieces_of(cuts))
    size = min(size, 21 - low)
    wanted = torch.arange(low, low + size).float()
    assert torch.equal(saved.read("w", "weight", low, size), wanted)
    assert torch.equal(saved.read("w", "exp_avg", low, size), -wanted)
    assert torch.equal(saved.whole("w"), torch.arange(21.0).view(7, 3))


def test_a_piece_gets_back_what_was_saved(tmp_path: Path) -> None:
    saved = save(tmp_path, pieces_of([4, 9]))
    state = {"exp_avg": torch.ones(30), "step": torch.tensor(1.0)}
    piece = Piece("w", SHAPE, 2, torch.zeros(10), state, 5)
    saved.fill(piece)
    assert torch.equal(piece.weight, torch.arange(2.0, 12.0))
    assert torch.equal(state["exp_avg"][5:15], -torch.arange(2.0, 12.0))
    assert (state["exp_avg"][:5] == 1).all() and (state["exp_avg"][15:] == 1).all()
    assert state["step"] == 3


def test_a_file_that_lacks_is_told(tmp_path: Path) -> None:
    save(tmp_path, pieces_of([4, 9]))
    (tmp_path / "state/rank1.safetensors").unlink()
    with pytest.raises(DataError, match="holds 16 of 21 values of weight of w"):
        SavedPieces.open(tmp_path).whole("w")
    (tmp_path / "state/rank2.safetensors").write_bytes(b"no such file")
    with pytest.raises(DataError, match="rank2.safetensors cannot be read"):
        SavedPieces.open(tmp_path)
    with pytest.raises(DataError, match="it is no checkpoint"):
        SavedPieces.open(tmp_path / "elsewhere")


def test_another_optimizers_state_is_refused(tmp_path: Path) -> None:
    saved = save(tmp_path, pieces_of([]))
    piece = Piece("w", SHAPE, 0, torch.zeros(21), {"momentum_buffer": torch.zeros(21)}, 0)
    with pytest.raises(DataError, match="saved by another optimizer"):
        saved.fill(piece)


@pytest.mark.parametrize("shares", [True, False])
def test_a_parameter_without_moments_begins_with_none(tmp_path: Path, shares: bool) -> None:
    saved = save(tmp_path, [Piece("w", SHAPE, 0, torch.arange(21.0), {})])
    state = {"exp_avg": torch.ones(21), "step": torch.tensor(1.0)}
    saved.fill(Piece("w", SHAPE, 0, torch.zeros(21), state, 0 if shares else None))
    assert (state == {}) if not shares else (state["exp_avg"] == 0).all()


def test_what_is_copied_is_out_of_reach(tmp_path: Path) -> None:
    pieces = pieces_of([])
    taken = snapshot(pieces, {}, copy=True)
    pieces[0].weight.fill_(9)
    assert torch.equal(taken.tensors["w:weight:0"], torch.arange(21.0))
