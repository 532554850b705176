"""The visitors that the page shows: whose they are, and in what words."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from distft.data import ragged
from distft.evaluate.examples import NUM_EVENTS, examples
from distft.topk import MISS
from tests.evaluate.test_rival import targets
from tests.serve.bundles import encoder, events


def test_examples_are_spread_over_the_targets_and_told_in_words():
    shop = encoder()
    raw = [events(seed, seed) for seed in range(40)]
    histories = [ragged.concat([shop.encode_events(row) for row in raw[start : start + 16]]) for start in (0, 16, 32)]
    item = shop.item_rows(f"i{index}" for index in range(40))
    item[39] = 1
    top = [[5, 4, 0] for _ in range(40)]
    rank = np.where(np.arange(40) == 39, MISS, 2)
    table = pa.table({"top_model": top, "rank_model": rank})
    batches = [(part, targets(item[16 * i : 16 * i + 16])) for i, part in enumerate(histories)]
    found = examples(batches, table, shop)
    assert [one.target for one in found[:3]] == ["i0", "i4", "i8"] and len(found) == 10
    assert found[0].history == [] and found[0].num_earlier == 0
    last = found[-1]
    assert (last.rank, last.target) == (None, "an item that is not in the catalogue")
    assert last.num_earlier == 39 - NUM_EVENTS
    assert last.history[-1] == (raw[39][-1].event, raw[39][-1].item_id)
    searches = [word for event, word in last.history if event == "search"]
    assert searches == [e.query for e in raw[39][-NUM_EVENTS:] if e.event == "search"]
    assert last.shown == ["i3", "i2"], "a place that ran out is not shown"
