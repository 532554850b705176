"""Padding, truncation, targets and time gaps of batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from distft.data.collate import history_batch, train_batch
from distft.data.ragged import take
from distft.schema import PAD, Histories
from tests.factories import PURCHASE, VIEW, histories


def one(events: list[tuple[int, int, int]]) -> Histories:
    """A history of (item, event, time in s)."""
    item, event, time = (np.array(column) for column in zip(*events, strict=True))
    return Histories(
        offsets=np.array([0, len(events)]),
        item_row=item.astype(np.int32),
        event=event.astype(np.int8),
        time_ms=time.astype(np.int64) * 1000,
        query_offsets=np.zeros(len(events) + 1, np.int64),
        query_tokens=np.zeros(0, np.int32),
        user_row=np.array([7], np.int32),
    )


def test_the_latest_events_are_kept_in_order_and_padded_on_the_right():
    batch = history_batch(histories([3, 1, 6]), max_history=4, has_clock=True)
    assert batch.length_B.tolist() == [3, 1, 4]
    assert (batch.event_BL != PAD).sum(1).tolist() == [3, 1, 4]
    assert batch.event_BL[1, 1:].tolist() == [0, 0, 0]
    full = histories([3, 1, 6])
    assert batch.item_BL[2].tolist() == full.item_row[-4:].tolist()
    assert not batch.target_BL.any()


def test_targets_are_the_following_events_of_the_target_types_on_known_items():
    history = one([(5, VIEW, 0), (6, PURCHASE, 10), (1, PURCHASE, 20), (7, VIEW, 30), (8, PURCHASE, 40)])
    batch = train_batch(history, 10, True, np.array([PURCHASE], np.int8))
    assert batch.item_BL.tolist() == [[5, 6, 1, 7]]
    assert batch.target_BL.tolist() == [[6, 0, 0, 8]]


def test_a_gap_is_one_plus_the_logarithm_of_the_seconds_and_the_first_is_unknown():
    history = one([(5, VIEW, 0), (6, VIEW, 0), (7, VIEW, 1), (8, VIEW, 1 + 3600)])
    batch = history_batch(history, 10, True)
    assert batch.gap_BL.tolist() == [[0, 1, 2, 1 + int(np.log2(3601))]]
    assert not history_batch(history, 10, False).gap_BL.any()


def test_a_cut_history_looks_the_same_as_one_that_never_had_the_older_events():
    long = histories([30])
    low, high = 20, 30
    start, end = long.query_offsets[low], long.query_offsets[high]
    short = Histories(
        offsets=np.array([0, 10]),
        item_row=long.item_row[low:],
        event=long.event[low:],
        time_ms=long.time_ms[low:],
        query_offsets=long.query_offsets[low:] - start,
        query_tokens=long.query_tokens[start:end],
        user_row=long.user_row,
    )
    cut, whole = history_batch(long, 10, True), history_batch(short, 10, True)
    for (name, left), (_, right) in zip(cut.tensors(), whole.tensors(), strict=True):
        assert torch.equal(left, right), name


def test_empty_histories_make_an_empty_batch_with_one_padded_position():
    batch = train_batch(histories([0, 1]), 10, True, np.array([PURCHASE], np.int8))
    assert batch.item_BL.shape == (2, 1)
    assert batch.length_B.tolist() == [0, 0]
    assert not batch.target_BL.any()
    assert train_batch(histories([]), 10, True, np.array([PURCHASE], np.int8)).item_BL.shape == (0, 1)


def test_what_is_drawn_is_keyed_by_the_row_and_by_the_step_and_not_when_serving():
    rows = replace(histories([4, 3, 5]), key=np.array([5, -6, 7]))
    batch = train_batch(take(rows, np.array([2, 0])), 10, True, np.array([PURCHASE], np.int8), step_key=-9)
    assert batch.key_B.tolist() == [7, 5]
    assert batch.step_key_B.tolist() == [-9, -9]
    served = history_batch(histories([4, 3]), 10, True)
    assert not served.key_B.any() and not served.step_key_B.any()
