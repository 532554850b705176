"""Examples: every target once, with a history that never holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distft.data.collate import example_batch
from distft.data.encode import Encoder
from distft.data.shards import TrainReader, load_histories
from distft.data.units import Cutting
from distft.schema import NUM_RESERVED, PAD
from distft.storage import Storage
from tests.data import logs
from tests.data.datasets import write_dataset
from tests.factories import PURCHASE, histories

PURCHASES = np.array([PURCHASE], np.int8)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_an_example_is_a_target_and_the_others_of_its_row(ordered: bool, size: int) -> None:
    rows = histories([7, 1, 0, 12])
    cutting = Cutting("each", size, PURCHASES, ordered)
    places = np.flatnonzero(cutting.targets(rows))
    assert cutting.counts(rows).sum() == len(places) > 5
    found = cutting.units(rows).rows(np.arange(len(places)))
    for unit, place in enumerate(places):
        row = int(np.searchsorted(rows.offsets, place, side="right")) - 1
        first, last = int(rows.offsets[row]), int(rows.offsets[row + 1])
        others = [other for other in range(first, last) if other != place and (other < place or not ordered)]
        events = found.time_ms[found.offsets[unit] : found.offsets[unit + 1]]  # every event has a time of its own
        assert events.tolist() == [*rows.time_ms[others[-size:]].tolist(), rows.time_ms[place]]
        assert found.user_row[unit] == row


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_target_is_read_once_whatever_the_number_of_workers(tmp_path: Path, world_size: int) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[3, 1, 12], [2], [], [7, 30]])
    wanted = np.array([1], np.int8)
    settings: dict[str, Any] = {"seed": 1, "num_streams": 3, "batch_size": 8, "windows": "each", "max_history": 5}
    readers = [
        TrainReader(dataset, rank=rank, world_size=world_size, target_codes=wanted, **settings)
        for rank in range(world_size)
    ]
    alone = TrainReader(dataset, target_codes=wanted, **settings)
    seen = []
    for step in range(alone.steps_per_epoch):
        parts = [reader.step_rows(2, step) for reader in readers]
        targets = [
            (rows.user_row[i], rows.item_row[end - 1]) for rows in parts for i, end in enumerate(rows.offsets[1:])
        ]
        whole = alone.step_rows(2, step)
        same = [(whole.user_row[i], whole.item_row[end - 1]) for i, end in enumerate(whole.offsets[1:])]
        assert sorted(targets) == sorted(same)
        seen += targets
    assert len(seen) == len(set(seen)) == 55


def test_no_example_of_a_prepared_random_split_is_in_its_own_history(tmp_path: Path) -> None:
    logs.write_csv(tmp_path / "log.csv", logs.rows())
    dataset, _ = logs.prepare_here(logs.job(tmp_path, split={"by": "random"}), tmp_path / "run")
    encoder = Encoder.load(Storage(tmp_path / "run") / "dataset" / "encoder")
    rows = load_histories(dataset, "train")
    reader = TrainReader(
        dataset, seed=1, batch_size=10_000, windows="each", max_history=1000, target_codes=encoder.target_codes
    )
    assert reader.steps_per_epoch == 1
    found = reader.step_rows(0, 0)
    assert len(found) == (np.isin(rows.event, encoder.target_codes) & (rows.item_row >= NUM_RESERVED)).sum()
    for user in np.unique(found.user_row):
        whole = _events(rows, int(np.flatnonzero(rows.user_row == user)[0]))
        for unit in np.flatnonzero(found.user_row == user):
            events = _events(found, int(unit))
            assert sorted(events) == sorted(whole)  # the example once, at the end, and all others once


def _events(rows: Any, i: int) -> list[tuple[int, ...]]:
    span = slice(int(rows.offsets[i]), int(rows.offsets[i + 1]))
    return list(zip(rows.time_ms[span].tolist(), rows.item_row[span].tolist(), rows.event[span].tolist(), strict=True))


def test_a_batch_of_examples_predicts_the_last_event_of_each_row_alone() -> None:
    rows = histories([7, 1, 12])
    batch = example_batch(rows, 5, True)
    assert batch.length_B.tolist() == [5, 0, 5]
    last = rows.offsets[1:] - 1
    assert batch.target_BL[[0, 1, 2], [4, 0, 4]].tolist() == rows.item_row[last].tolist()
    assert batch.target_value_BL[[0, 1, 2], [4, 0, 4]].tolist() == rows.value[last].tolist()
    assert int((batch.target_BL != PAD).sum()) == sum(rows.item_row[last] != PAD)
    assert batch.event_BL[1].tolist() == [PAD] * 5
