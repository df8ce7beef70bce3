"""The order of instances: permutations, lanes, and the same global batch on any number of ranks."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import DataError
from pipeline.data.loader import Batch, Loader
from pipeline.data.order import LaneOrder, ShuffledOrder, permute, rank_rows
from pipeline.seeds import derive_key
from tests.pipeline.streams import random_stream

Order = ShuffledOrder | LaneOrder
sizes, keys = st.integers(1, 5000), st.integers(0, 2**64 - 1)


@given(size=sizes, key=keys)
def test_permute_takes_every_number_once(size: int, key: int) -> None:
    image = permute(np.arange(size), size, key)
    assert np.array_equal(np.sort(image), np.arange(size))


@given(size=sizes, key=keys, data=st.data())
def test_permute_of_one_number_does_not_depend_on_the_others(
    size: int, key: int, data: st.DataObject
) -> None:
    some = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
    together = permute(np.array(some), size, key)
    assert together.tolist() == [permute(np.array([i]), size, key)[0] for i in some]
    assert together.tolist() == permute(np.arange(size), size, key)[some].tolist()


@given(size=st.integers(50, 5000), key=keys)
def test_another_key_gives_another_permutation(size: int, key: int) -> None:
    numbers = np.arange(size)
    assert not np.array_equal(permute(numbers, size, key), permute(numbers, size, key ^ 1))


def test_permute_leaves_no_trace_of_the_old_order() -> None:
    image = permute(np.arange(4000), 4000, 7)
    assert abs(np.corrcoef(np.arange(4000), image)[0, 1]) < 0.08
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.08


def test_keys_differ_by_purpose_and_number() -> None:
    parts = [(seed, use, n) for seed in range(5) for use in ("epoch", "lanes") for n in range(5)]
    found = {derive_key(*p) for p in parts}
    assert len(found) == len(parts) and all(0 <= key < 2**64 for key in found)


@given(tokens=st.integers(2, 400), window=st.integers(1, 9), seed=st.integers(0, 99))
def test_shuffled_order_reads_every_window_once_an_epoch(
    tokens: int, window: int, seed: int
) -> None:
    if tokens <= window:
        return
    order = ShuffledOrder(tokens, window, seed)
    every = [start for start in range(0, tokens, window) if start + window + 1 <= tokens]
    for epoch in range(3):
        numbers = np.arange(order.windows) + epoch * order.windows
        assert sorted(order.starts(numbers).tolist()) == every
        assert order.epoch(epoch * order.windows) == epoch


def test_shuffled_epochs_and_seeds_differ() -> None:
    order, n = ShuffledOrder(1001, 10, 3), np.arange(100)
    assert not np.array_equal(order.starts(n), order.starts(n + 100))
    assert not np.array_equal(order.starts(n), ShuffledOrder(1001, 10, 4).starts(n))


def test_a_shuffled_batch_may_straddle_epochs() -> None:
    order = ShuffledOrder(71, 10, 0)  # 7 windows
    batch = order.starts(np.arange(4, 10))
    assert batch[:3].tolist() == order.starts(np.arange(7))[4:].tolist()
    assert batch[3:].tolist() == order.starts(np.arange(7, 14))[:3].tolist()


lane_orders = st.builds(
    lambda lanes, window, windows, rest, seed: LaneOrder(
        lanes * window * windows + 1 + rest, window, seed, lanes
    ),
    st.integers(1, 6), st.integers(1, 7), st.integers(1, 6), st.integers(0, 9), st.integers(0, 99),
)  # fmt: skip


@given(order=lane_orders)
def test_lanes_walk_on_where_they_left_off(order: LaneOrder) -> None:
    numbers = np.arange(3 * order.windows_per_lane * order.lanes)
    starts = order.starts(numbers).reshape(-1, order.lanes)
    begins = order.starts_epoch(numbers).reshape(-1, order.lanes)
    for step in range(1, len(starts)):
        is_new = step % order.windows_per_lane == 0
        assert begins[step].tolist() == [is_new] * order.lanes
        if not is_new:
            walked = (starts[step - 1] + order.window) % order.tokens
            assert starts[step].tolist() == walked.tolist()
    assert begins[0].all()


@given(order=lane_orders)
def test_lanes_of_an_epoch_share_no_token(order: LaneOrder) -> None:
    span = order.windows_per_lane * order.lanes
    for epoch in range(3):
        starts = order.starts(np.arange(span) + epoch * span)
        read = [(s + i) % order.tokens for s in starts.tolist() for i in range(order.window)]
        assert len(set(read)) == len(read)
        # What is left unread is less than one more window for every lane.
        assert order.tokens - len(read) <= order.lanes * order.window


def test_an_epoch_moves_the_edges_of_the_lanes() -> None:
    order = LaneOrder(10_001, 10, 5, 4)
    edges = [order.starts(np.arange(4) + epoch * 250 * 4).tolist() for epoch in range(5)]
    assert edges[0] == [0, 2500, 5000, 7500]
    assert len({tuple(e) for e in edges}) == 5
    other_seed = LaneOrder(10_001, 10, 6, 4)
    assert other_seed.starts(np.arange(4) + 1000).tolist() != edges[1]


def test_a_moved_lane_goes_on_at_the_beginning_of_the_stream() -> None:
    order = LaneOrder(101, 10, 1, 2)
    starts = order.starts(np.arange(10, 20))  # the second epoch
    assert (starts < 101).all() and (np.diff(starts[::2]) < 0).any() | (
        np.diff(starts[1::2]) < 0
    ).any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ShuffledOrder(64, 64, 0), "holds 64 tokens, fewer than one window of 64 .* 1"),
        (lambda: LaneOrder(320, 64, 0, 5), "need at least 321 tokens, .* holds 320"),
    ],
)
def test_too_little_text_is_refused_with_the_tokens_that_are_needed(make, words) -> None:  # noqa: ANN001
    with pytest.raises(DataError, match=words):
        make()


def test_just_enough_text_is_taken() -> None:
    assert ShuffledOrder(65, 64, 0).windows == 1
    assert LaneOrder(321, 64, 0, 5).windows_per_lane == 1


def read(order: Order, micro: int, world: int, first: int, global_batch: int) -> list[Batch]:
    """The batch at `first` as each of `world` ranks reads it."""
    stream = random_stream(order.tokens, seed=order.tokens)
    parts = []
    for rank in range(world):
        with closing(Loader(stream, order, micro, rank, world)) as loader:
            parts.append(loader.at(first, global_batch))
    return parts


def rows(batches: list[Batch], name: str) -> list[list[float]]:
    """All rows in the order of ranks, each rank's in the order of its micro-batches."""
    return [row for batch in batches for micro in batch for row in getattr(micro, name).tolist()]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), lanes=st.booleans(), step=st.integers(0, 12), seed=st.integers(0, 9))
def test_the_global_batch_does_not_depend_on_ranks_and_micro_batches(
    data: st.DataObject, lanes: bool, step: int, seed: int
) -> None:
    world = data.draw(st.integers(1, 4))
    micro = data.draw(st.integers(1, 3))
    batch = world * micro * data.draw(st.integers(1, 3))
    tokens = data.draw(st.integers(5 * batch + 1, 20 * batch + 50))
    order: Order = LaneOrder(tokens, 5, seed, batch) if lanes else ShuffledOrder(tokens, 5, seed)
    parts = read(order, micro, world, step * batch, batch)
    whole = read(order, batch, 1, step * batch, batch)
    names = ("inputs", "targets", "weights", "resets") if lanes else ("inputs", "targets")
    for name in names:
        assert rows(parts, name) == rows(whole, name)
    assert {part.global_tokens for part in parts} == {5 * batch}
    places = [list(range(batch // world))[m.rows] for m in parts[-1]]
    assert sum(places, []) == list(range(batch // world))


def test_ranks_share_the_rows_without_gap_or_overlap() -> None:
    assert [list(rank_rows(6, r, 3)) for r in range(3)] == [[0, 1], [2, 3], [4, 5]]
