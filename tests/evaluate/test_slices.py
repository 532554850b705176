"""Groups of targets: every target in one group of each way."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from distft.evaluate.slices import popularity_group, slices

COUNTS = np.array([0, 0, 50, 20, 9, 5, 3, 0])


def test_head_tail_and_cold_by_training_target_events():
    assert popularity_group(COUNTS).tolist() == [2, 2, 0, 1, 1, 1, 1, 2], "a fifth of the five trained items is one"
    assert popularity_group(np.zeros(4, np.int64)).tolist() == [2] * 4


def test_every_target_is_in_one_group_of_each_way():
    table = pa.table(
        {
            "history_length": np.array([0, 1, 4, 5, 49, 50, 99, 100, 5000]),
            "target_item": np.array([1, 2, 3, 7, 2, 2, 6, 2, 2], np.int32),
            "target_event": np.array([1, 1, 3, 3, 3, 3, 3, 3, 3], np.int8),
            "seen_before": np.array([False, True, True, False, False, False, False, True, True]),
        }
    )
    found = slices(table, COUNTS, ("view", "cart", "purchase"))
    counts = {way: {name: int(mask.sum()) for name, mask in groups.items()} for way, groups in found.items()}
    assert counts == {
        "history_length": {"0": 1, "1-4": 2, "5-9": 1, "20-49": 1, "50-99": 2, "100+": 2},
        "popularity": {"head": 5, "tail": 2, "cold": 2},
        "event": {"view": 2, "purchase": 7},
        "seen": {"seen before": 4, "new": 5},
    }
    for groups in found.values():
        assert np.array_equal(np.sum(list(groups.values()), axis=0), np.ones(9))
