"""The item-to-item baseline against a plain count of pairs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from distft.data.ragged import concat
from distft.evaluate import cooccurrence
from distft.evaluate.cooccurrence import DECAY, NUM_LATEST, WINDOW, co_occurrence, neighbours
from distft.topk import top_k
from tests.evaluate.test_baselines import COUNTS, Shop
from tests.factories import histories

TRAINED = [histories([30, 1, 12, 0, 45], seed=seed) for seed in range(3)]


def plain_likeness(parts, num_items: int) -> np.ndarray:
    pairs, times = Counter(), Counter()
    for part in parts:
        for start, end in zip(part.offsets, part.offsets[1:], strict=False):
            items = part.item_row[start:end].tolist()
            times.update(items)
            for index, item in enumerate(items):
                for other in items[index + 1 : index + 1 + WINDOW]:
                    if item != other and min(item, other) >= 2:
                        pairs[item, other] += 1
                        pairs[other, item] += 1
    like = np.zeros((num_items, num_items))
    for (item, other), count in pairs.items():
        like[item, other] = count / np.sqrt(times[item] * times[other])
    return like


@pytest.mark.parametrize("max_events", [7, 1_000_000])
def test_neighbours_are_the_items_that_come_close_to_each_other_most(monkeypatch, max_events):
    monkeypatch.setattr(cooccurrence, "MAX_EVENTS", max_events)
    monkeypatch.setattr(cooccurrence, "NUM_NEIGHBOURS", 5)
    like = plain_likeness(TRAINED, 40)
    near = neighbours(iter(TRAINED), 40)
    for item in range(40):
        expected = [other for other in np.argsort(-like[item], kind="stable")[:5] if like[item, other]]
        start, end = near.offsets[item : item + 2]
        assert near.item_P[start:end].tolist() == expected
        assert near.likeness_P[start:end] == pytest.approx(like[item, expected])


def test_pairs_are_thinned_to_the_most_frequent_ones(monkeypatch):
    monkeypatch.setattr(cooccurrence, "MAX_EVENTS", 10)
    monkeypatch.setattr(cooccurrence, "MAX_PAIRS", 200)
    monkeypatch.setattr(cooccurrence, "NUM_NEIGHBOURS", 3)
    near = neighbours(TRAINED, 40)
    assert 0 < len(near.item_P) <= 3 * 38
    like = plain_likeness(TRAINED, 40)
    assert all(like[item, near.item_P[near.offsets[item]]] > 0 for item in range(2, 40))


def test_a_score_is_the_sum_over_the_latest_items():
    near, like = neighbours(TRAINED, 40), plain_likeness(TRAINED, 40)
    seen = histories([NUM_LATEST + 9, 0, 2], seed=5)
    rows = top_k(co_occurrence(near, Shop(COUNTS), seen), 40, 38, None, 3)[1]
    expected = np.zeros(40)
    for age, item in enumerate(seen.item_row[: NUM_LATEST + 9][::-1][:NUM_LATEST].tolist()):
        expected += DECAY**age * like[item] if item >= 2 else 0
    scores = co_occurrence(near, Shop(COUNTS), seen)(0, 40)[0].numpy()
    assert scores == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert rows[1].tolist() == list(range(2, 40)), "the popular ones, where there is no history"


def test_no_training_leaves_the_popular_items():
    near = neighbours([concat([])], 40)
    rows = top_k(co_occurrence(near, Shop(COUNTS), histories([3])), 40, 5, None, 1)[1]
    assert rows.tolist() == [[2, 3, 4, 5, 6]]


def test_nobody_gets_no_list():
    near = neighbours(TRAINED, 40)
    assert top_k(co_occurrence(near, Shop(COUNTS), histories([])), 40, 5, None, 0)[1].shape == (0, 5)
