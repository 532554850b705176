from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from distft.data.clean import cancelled, first_of_duplicates, k_core, repeated
from distft.data.partition import NONE, Partition, order_of


def events(rows: list[tuple[Any, ...]]) -> Partition:
    """Sorted events from (user, time, item, quantity)."""
    user, time, item, quantity = (np.array(column) for column in zip(*rows, strict=True))
    size = len(rows)
    return Partition(
        user_ids=np.array([f"u{number}" for number in range(9)], np.object_),
        item_ids=np.array([f"i{number}" for number in range(9)], np.object_),
        queries=np.zeros(0, np.object_),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        event=np.ones(size, np.int8),
        time_ms=time.astype(np.int64),
        query=np.full(size, NONE, np.int32),
        value=np.zeros(size, np.float32),
        quantity=quantity.astype(np.float32),
    )


def test_events_are_sorted_stably_by_user_and_time_however_many_users_there_are() -> None:
    rng = np.random.default_rng(1)
    for num_users, sorted_log in ((3, False), (40, True), (200_000, False)):
        user = rng.integers(0, num_users, 3000).astype(np.int32)
        time_ms = rng.integers(0, 50, 3000)
        if sorted_log:
            time_ms.sort()
        assert order_of(user, time_ms).tolist() == np.lexsort((time_ms, user)).tolist()
    assert order_of(np.zeros(0, np.int32), np.zeros(0, np.int64)).tolist() == []


def test_only_rows_equal_in_every_field_are_duplicates() -> None:
    rows = [(0, 1, 1, 1), (0, 1, 2, 1), (0, 1, 1, 1), (0, 1, 1, 2), (0, 2, 1, 1), (1, 2, 1, 1)]
    assert first_of_duplicates(events(rows)).tolist() == [True, True, False, True, True, True]


def test_without_a_clock_nothing_is_a_duplicate() -> None:
    assert first_of_duplicates(events([(0, NONE, 1, 1), (0, NONE, 1, 1)])).all()


def test_missing_quantities_agree_with_each_other() -> None:
    assert first_of_duplicates(events([(0, 1, 1, np.nan), (0, 1, 1, np.nan)])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("quantities", "undone"),
    [
        ([2, -2], [True, False]),
        ([-2, 2], [False, False]),  # nothing was bought yet
        ([1, 1, -1], [False, True, False]),  # the latest
        ([1, 1, -1, -1], [True, True, False, False]),
        ([1, -1, -1, 1], [True, False, False, False]),
        ([1, -1, 1, -1], [True, False, True, False]),
    ],
)
def test_a_cancellation_undoes_the_latest_purchase_left(quantities: list[int], undone: list[bool]) -> None:
    rows = [(0, time, 1, quantity) for time, quantity in enumerate(quantities)]
    assert cancelled(events(rows)).tolist() == undone


def test_a_cancellation_is_of_one_user_and_item() -> None:
    rows = [(0, 1, 1, 1), (0, 1, 2, 1), (0, 3, 1, -1), (1, 1, 1, 1)]
    assert cancelled(events(rows)).tolist() == [True, False, False, False]


def test_k_core_is_the_largest_set_that_satisfies_both_minima() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        user = rng.integers(0, 5, 24).astype(np.int32)
        item = rng.integers(-1, 5, 24).astype(np.int32)
        core = k_core([(user[:9], item[:9]), (user[9:], item[9:])], (5, 5), (3, 4))
        kept = core.users[user] & (core.items[item] | (item == NONE))
        assert core.dropped_for_user + core.dropped_for_item == 24 - kept.sum()
        best = _by_trial(user, item, 3, 4)
        assert kept.sum() == best


def _by_trial(user: np.ndarray, item: np.ndarray, min_user: int, min_item: int) -> int:
    """Events of the best pair of subsets, all of them tried."""
    best = 0
    for users in itertools.product([False, True], repeat=5):
        for items in itertools.product([False, True], repeat=5):
            kept = np.array(users)[user] & (np.array(items)[item] | (item == NONE))
            per_user = np.bincount(user[kept], minlength=5)
            per_item = np.bincount(item[kept & (item != NONE)], minlength=5)
            if (per_user[per_user > 0] >= min_user).all() and (per_item[per_item > 0] >= min_item).all():
                best = max(best, int(kept.sum()))
    return best


def test_k_core_of_nothing() -> None:
    core = k_core([(np.zeros(0, np.int32), np.zeros(0, np.int32))], (0, 0), (5, 5))
    assert core.dropped_for_user == 0


def test_an_event_that_repeats_another_within_the_window_is_found() -> None:
    rows = [(0, 0, 1, 1), (0, 8, 1, 1), (0, 9, 2, 1), (0, 12, 1, 2), (0, 18, 1, 1), (0, 29, 1, 1), (1, 1, 1, 1)]
    assert repeated(events(rows), 10).tolist() == [False, True, False, False, True, False, False]
    assert not repeated(events([(0, NONE, 1, 1), (0, NONE, 1, 1)]), 10).any()
