"""Augmented training rows: what may change, how often, and that it follows a row's key alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distft.data.augment import CROP_SHARE, REORDER_SHARE, changed, mask_items
from distft.data.collate import train_batch
from distft.data.ragged import concat, take
from distft.schema import NUM_RESERVED, UNKNOWN, Histories
from distft.sections.train import Augment
from tests.factories import PURCHASE, histories

TARGETS = np.array([PURCHASE], np.int8)
LENGTHS = [1, 2, 3, 0, *[20] * 400]


@pytest.fixture(scope="module")
def rows():
    return keyed(histories(LENGTHS), 1)


def keyed(rows: Histories, seed: int) -> Histories:
    return replace(rows, key=np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, len(rows)))


def events(rows: Histories, i: int) -> list[tuple[object, ...]]:
    """The events of row i, each with all that belongs to it."""
    return [
        (
            int(rows.item_row[j]),
            int(rows.event[j]),
            int(rows.time_ms[j]),
            float(rows.value[j]),
            tuple(rows.query_tokens[rows.query_offsets[j] : rows.query_offsets[j + 1]].tolist()),
        )
        for j in range(int(rows.offsets[i]), int(rows.offsets[i + 1]))
    ]


def timeless(row: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return [(*event[:2], *event[3:]) for event in row]


def test_no_rule_changes_nothing(rows):
    assert changed(rows, Augment()) is rows


def test_a_crop_is_a_run_of_at_least_half_of_the_events(rows):
    cropped = changed(rows, Augment(crop=0.5))
    num_cut = 0
    for i, length in enumerate(LENGTHS):
        whole, part = events(rows, i), events(cropped, i)
        assert len(part) >= max(min(length, 2), CROP_SHARE * length)
        assert any(whole[start : start + len(part)] == part for start in range(length - len(part) + 1)) or not part
        num_cut += len(part) < length
    assert 0.35 < num_cut / 400 < 0.55
    assert cropped.user_row.tolist() == rows.user_row.tolist() and cropped.key.tolist() == rows.key.tolist()
    starts = {events(rows, i).index(events(cropped, i)[0]) for i in range(4, len(rows))}
    assert starts >= set(range(9))


def test_reordering_moves_the_events_of_one_stretch_and_no_time(rows):
    moved = changed(rows, Augment(reorder=0.5))
    assert moved.time_ms.tolist() == rows.time_ms.tolist() and moved.offsets.tolist() == rows.offsets.tolist()
    num_moved = 0
    for i, length in enumerate(LENGTHS):
        before, after = timeless(events(rows, i)), timeless(events(moved, i))
        assert sorted(before) == sorted(after)
        places = [j for j in range(length) if before[j] != after[j]]
        assert not places or places[-1] - places[0] < max(2, REORDER_SHARE * length)
        num_moved += bool(places)
    assert 0.35 < num_moved / 400 < 0.6


def test_masking_hides_items_and_leaves_targets_and_searches(rows):
    batch, plain = train_batch(rows, 50, True, TARGETS), train_batch(rows, 50, True, TARGETS)
    mask_items(batch, 0.3)
    hidden = batch.item_BL != plain.item_BL
    assert (batch.item_BL[hidden] == UNKNOWN).all() and (plain.item_BL[hidden] >= NUM_RESERVED).all()
    assert 0.28 < hidden.sum() / (plain.item_BL >= NUM_RESERVED).sum() < 0.32
    for name, tensor in batch.tensors():
        assert name == "item_BL" or tensor.equal(getattr(plain, name))


@pytest.mark.parametrize("rules", [Augment(crop=0.7), Augment(reorder=0.7), Augment(crop=0.5, reorder=0.5)])
def test_a_row_changes_by_its_key_and_by_nothing_else(rows, rules):
    whole = changed(rows, rules)
    some = np.array([300, 7, 2, 41])
    alone = changed(take(rows, some), rules)
    assert [events(alone, i) for i in range(4)] == [events(whole, i) for i in some.tolist()]
    other = changed(keyed(rows, 2), rules)
    assert sum(events(other, i) != events(whole, i) for i in range(len(rows))) > 200


def test_no_rows_are_no_rows():
    assert len(changed(concat([]), Augment(crop=1, reorder=1))) == 0
    mask_items(train_batch(concat([]), 5, True, TARGETS), 0.5)
