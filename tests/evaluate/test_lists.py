"""What lists are like, against the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distft.evaluate.lists import gini, list_metrics

COUNTS = np.array([0, 0, 8, 4, 4, 0])


def test_each_metric_follows_its_definition():
    top = np.array([[2, 3], [2, 4], [2, 0]])
    found = list_metrics(top, COUNTS, [1, 2])
    assert found["coverage@1"] == 1 / 4 and found["coverage@2"] == 3 / 4
    assert found["novelty@1"] == 1, "half of all events: one bit"
    assert found["novelty@2"] == pytest.approx((1.5 + 1.5 + 1) / 3), "places that a list lacks do not count"
    assert found["arp@2"] == pytest.approx((6 + 6 + 8) / 3)
    assert found["gini@1"] == 3 / 4, "one of four items alone"


def test_an_item_without_training_is_as_surprising_as_one_event():
    assert list_metrics(np.array([[5]]), COUNTS, [1])["novelty@1"] == math.log2(16)


def test_gini_is_half_the_relative_mean_difference():
    amounts = np.random.default_rng(0).integers(0, 30, 50)
    expected = np.abs(amounts[:, None] - amounts[None]).mean() / (2 * amounts.mean())
    assert gini(amounts) == pytest.approx(expected)
    assert gini(np.full(7, 3)) == pytest.approx(0) and gini(np.zeros(4, np.int64)) == 0


def test_empty_lists_and_an_empty_catalogue_give_zero():
    assert set(list_metrics(np.zeros((2, 3), np.int32), np.zeros(2, np.int64), [3]).values()) == {0.0}
