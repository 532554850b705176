"""Which event of the next basket a position predicts."""

from __future__ import annotations

import numpy as np

from distft.data.baskets import next_basket
from distft.data.collate import train_batch
from distft.data.ragged import concat
from tests.data.test_collate import one
from tests.factories import PURCHASE, VIEW, histories


def test_each_line_predicts_one_of_the_next_basket_and_none_of_its_own():
    first = one([(item, PURCHASE, time) for item, time in [(5, 0), (6, 0), (7, 9), (8, 9), (9, 9), (4, 9), (3, 20)]])
    second = one([(5, PURCHASE, 20), (6, PURCHASE, 20), (7, PURCHASE, 30)])
    assert next_basket(concat([first, second])).tolist() == [2, 4, 6, 6, 6, 6, -1, 9, 9, -1]
    assert next_basket(concat([])).tolist() == []


def test_where_no_two_events_share_a_time_the_next_event_is_predicted():
    some = histories([5, 0, 1, 9])
    following = next_basket(some)
    last = some.offsets[1:][some.lengths > 0] - 1
    assert (following[last] == -1).all()
    assert np.array_equal(np.delete(following, last), np.delete(np.arange(15) + 1, last))


def test_targets_of_a_batch_are_of_the_next_basket():
    history = one([(5, PURCHASE, 0), (6, PURCHASE, 0), (7, PURCHASE, 9), (8, VIEW, 9), (9, PURCHASE, 20)])
    codes = np.array([PURCHASE], np.int8)
    assert train_batch(history, 10, True, codes, baskets=True).target_BL.tolist() == [[7, 0, 9, 9]]
    assert train_batch(history, 3, True, codes, baskets=True).target_BL.tolist() == [[0, 9, 9]]
    assert train_batch(histories([0, 1]), 10, True, codes, baskets=True).target_BL.tolist() == [[0], [0]]
