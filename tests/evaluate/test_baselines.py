"""The lists that a model must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from distft.evaluate.baselines import oracle_scores, popularity, recently_seen
from distft.schema import NUM_RESERVED
from distft.topk import top_k
from tests.factories import histories


@dataclass
class Shop:
    """What the baselines ask of an encoder."""

    counts: np.ndarray
    num_items: int = 40

    @property
    def item_ids(self) -> np.ndarray:
        return np.array(["", "", *(f"i{row}" for row in range(2, self.num_items))], object)

    def decode(self, all_histories, index):
        return all_histories.item_row[all_histories.offsets[index] : all_histories.offsets[index + 1]]


COUNTS = np.concatenate([[0, 0], np.arange(38, 0, -1)]).astype(np.int64)


def test_popularity_lists_items_by_their_training_count():
    rows = top_k(popularity(Shop(COUNTS), histories([3, 0])), 40, 5, None, 2)[1]
    assert rows.tolist() == [[2, 3, 4, 5, 6]] * 2


def test_recently_seen_lists_the_latest_items_first_each_once_then_the_popular():
    seen = histories([12, 0], seed=3)
    items = [int(row) for row in seen.item_row[::-1] if row >= NUM_RESERVED]
    expected = list(dict.fromkeys(items))
    expected += [row for row in range(2, 40) if row not in expected]
    rows = top_k(recently_seen(Shop(COUNTS), seen), 40, 38, None, 2)[1]
    assert rows[0].tolist() == expected
    assert rows[1].tolist() == list(range(2, 40))


def test_an_excluded_item_makes_room_for_the_next():
    seen = histories([6], seed=1)
    out = [np.unique(seen.item_row)]
    rows = top_k(recently_seen(Shop(COUNTS), seen), 40, 10, out, 1)[1][0].tolist()
    assert rows == [row for row in range(2, 40) if row not in set(out[0].tolist())][:10]


def test_an_oracle_that_differs_by_less_than_fp32_is_still_in_order():
    class Fine:
        def scores(self, history, item_ids):
            return 1 / 3 + 1e-12 * np.arange(len(item_ids))

    rows = top_k(oracle_scores(Fine(), Shop(COUNTS), histories([2])), 40, 3, None, 1)[1]
    assert rows.tolist() == [[39, 38, 37]]
    assert torch.float32 == oracle_scores(Fine(), Shop(COUNTS), histories([2]))(2, 5).dtype
