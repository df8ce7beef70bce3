"""Windows and reset masks against slow, obvious indexing."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.shards import Split
from pipeline.data.loader import Batch, Loader, micro_batch
from pipeline.data.order import LaneOrder, ShuffledOrder
from pipeline.data.units import loss_units
from tests.pipeline.streams import Stream, random_stream, reset_points, write_split

documents = st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=12), min_size=1, max_size=9)


@settings(deadline=None)
@given(documents=documents, data=st.data())
def test_windows_equal_indexing_a_circular_list(documents: list, data: st.DataObject) -> None:
    stream = [token for ids in documents for token in ids]
    if len(stream) < 2:
        return
    window = data.draw(st.integers(1, len(stream) - 1))
    starts = data.draw(st.lists(st.integers(0, len(stream) - 1), min_size=1, max_size=6))
    with TemporaryDirectory() as folder:
        split = write_split(Path(folder), documents)
        got = split.windows(np.array(starts), window + 1)
    wanted = [[stream[(s + i) % len(stream)] for i in range(window + 1)] for s in starts]
    assert got.tolist() == wanted


@settings(deadline=None)
@given(documents=documents, data=st.data())
def test_reset_mask_equals_looking_every_position_up(documents: list, data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        split = write_split(Path(folder), documents, data.draw(st.integers(0, 4)))
        if split.tokens < 2:
            return
        window = data.draw(st.integers(1, split.tokens - 1))
        starts = data.draw(st.lists(st.integers(0, split.tokens - 1), min_size=1, max_size=6))
        got = split.resets(np.array(starts), window)
        assert got.tolist() == slow_mask(split, starts, window)


def slow_mask(split: Split, starts: list[int], window: int) -> list[list[bool]]:
    points = reset_points(split)
    return [[(s + i) % split.tokens in points for i in range(window)] for s in starts]


@pytest.mark.parametrize("start", [95, 96, 97, 99, 0])
def test_a_lane_that_comes_round_to_the_beginning_is_reset(start: int) -> None:
    stream = Stream(np.arange(100, dtype="u2"), resets=[])  # reset_documents: 0
    walk = np.array([start, (start + 4) % 100])
    assert stream.resets(walk, 4).flatten().tolist() == [(start + i) % 100 == 0 for i in range(8)]


def flat(batch: Batch) -> list[torch.Tensor]:
    return [t for m in batch for t in (m.inputs, m.targets, m.weights, m.resets) if t is not None]


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.integers(0, 15), min_size=1, max_size=12), lanes=st.booleans())
def test_reading_ahead_equals_cold_reading_however_one_jumps(steps: list[int], lanes: bool) -> None:
    stream = random_stream(203, seed=1)
    order = LaneOrder(203, 5, 2, 6) if lanes else ShuffledOrder(203, 5, 2)
    with closing(Loader(stream, order, 2)) as warm:
        for step in steps:
            with closing(Loader(stream, order, 2)) as cold:
                pairs = zip(flat(warm.at(6 * step, 6)), flat(cold.at(6 * step, 6)), strict=True)
                assert all(torch.equal(a, b) for a, b in pairs)


def test_the_following_batch_is_taken_from_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, reads = random_stream(203, seed=1), []
    with closing(Loader(stream, ShuffledOrder(203, 5, 2), 2)) as loader:
        original = loader._read
        monkeypatch.setattr(loader, "_read", lambda i, n: reads.append(i) or original(i, n))
        loader.at(0, 6)
        loader.at(6, 6)
        loader.at(60, 6)
    assert sorted(set(reads)) == sorted(reads)  # nothing was read twice
    assert {0, 6, 60} <= set(reads)


def test_a_micro_batch_has_the_next_token_as_target() -> None:
    tokens = np.arange(24, dtype="u2").reshape(4, 6)
    micro = micro_batch(tokens, None, slice(1, 3))
    assert micro.inputs.tolist() == [[6, 7, 8, 9, 10], [12, 13, 14, 15, 16]]
    assert torch.equal(micro.targets, micro.inputs + 1)
    assert micro.inputs.dtype == micro.targets.dtype == torch.int64
    assert micro.weights.tolist() == [[1.0] * 5] * 2 and micro.resets is None


def test_lane_batches_reset_at_documents_and_at_the_start_of_an_epoch() -> None:
    stream = random_stream(203, seed=4)
    order = LaneOrder(203, 5, 2, 6)
    with closing(Loader(stream, order, 6)) as loader:
        for step in range(3 * order.windows_per_lane):
            (micro,) = loader.at(6 * step, 6)
            numbers = 6 * step + np.arange(6)
            wanted = np.array(slow_mask(stream, order.starts(numbers).tolist(), 5))
            if step % order.windows_per_lane == 0:
                wanted[:, 0] = True
            assert micro.resets is not None and micro.resets.tolist() == wanted.tolist()


def test_shuffled_batches_have_no_resets() -> None:
    with closing(Loader(random_stream(203, 1), ShuffledOrder(203, 5, 2), 6)) as loader:
        assert [m.resets for m in loader.at(0, 6)] == [None]


def test_loss_units_count_the_text_without_its_framing() -> None:
    split = Stream(np.zeros(120, "u2"), [])
    split.bytes, split.characters = 100, 80
    units = loss_units(2.0, split)
    # 120 tokens of 2 nats over 100 bytes and 80 characters
    assert units["bits_per_byte"] == pytest.approx(2.4 / np.log(2))
    assert units["bits_per_character"] == pytest.approx(3.0 / np.log(2))
    assert units["ppl_per_token"] == pytest.approx(np.exp(2)) and units["nats_per_token"] == 2.0
    assert units["ppl_per_byte"] == pytest.approx(np.exp(2.4))
