from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distft.data.shards import ReadingPlan, TargetReader, TrainReader, load_histories
from distft.errors import ArtefactError, UsageError
from distft.schema import Histories
from distft.storage import Storage
from tests.data.datasets import write_dataset

SHARDS = [[3, 1, 12, 5], [2], [], [7, 7, 4, 30, 2, 2], [9, 6], [1, 1, 1, 8, 4]]
NUM_ROWS = sum(map(len, SHARDS))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return write_dataset(Path(tmp_path_factory.mktemp("shards")) / "dataset", SHARDS)


def reader(dataset: Storage, **changes: Any) -> TrainReader:
    return TrainReader(dataset, **{"seed": 1, "num_streams": 5, "batch_size": 4, "max_history": 50} | changes)


def units(rows: Histories) -> list[tuple[int, ...]]:
    """Each row as (user, items…): tells every window of every user apart."""
    ends = rows.offsets.tolist()
    return [
        (user, *rows.item_row[start:end].tolist())
        for user, start, end in zip(rows.user_row.tolist(), ends[:-1], ends[1:], strict=True)
    ]


def test_load_histories_returns_every_row_in_order(dataset: Storage) -> None:
    rows = load_histories(dataset, "train")
    assert rows.lengths.tolist() == [length for shard in SHARDS for length in shard]
    assert rows.user_row.tolist() == list(range(NUM_ROWS))
    assert len(rows.time_ms) == len(rows.item_row) == len(rows.value) == len(rows.query_offsets) - 1


@pytest.mark.parametrize("windows", ["last", "all"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_row_is_read_once_an_epoch(dataset: Storage, world_size: int, windows: str) -> None:
    readers = [
        reader(dataset, rank=rank, world_size=world_size, windows=windows, max_history=4) for rank in range(world_size)
    ]
    assert {one.steps_per_epoch for one in readers} == {readers[0].steps_per_epoch}
    seen = [
        unit for step in range(readers[0].steps_per_epoch) for one in readers for unit in units(one.step_rows(0, step))
    ]
    assert len(seen) == len(set(seen)) == readers[0].rows_per_epoch
    assert {unit[0] for unit in seen} == set(range(NUM_ROWS))


@pytest.mark.parametrize("windows", ["last", "all"])
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_a_batch_does_not_depend_on_the_number_of_workers(dataset: Storage, world_size: int, windows: str) -> None:
    alone = reader(dataset, windows=windows, max_history=4)
    group = [
        reader(dataset, rank=rank, world_size=world_size, windows=windows, max_history=4) for rank in range(world_size)
    ]
    for epoch in (0, 3):
        for step in range(alone.steps_per_epoch):
            together = [unit for one in group for unit in units(one.step_rows(epoch, step))]
            assert sorted(together) == sorted(units(alone.step_rows(epoch, step)))


@pytest.mark.parametrize("windows", ["last", "all"])
def test_keys_of_draws_tell_rows_and_epochs_apart_and_not_workers(dataset: Storage, windows: str) -> None:
    def keys(epoch: int, **changes: Any) -> dict[tuple[int, ...], int]:
        one, found = reader(dataset, windows=windows, max_history=4, **changes), {}
        for step in range(one.steps_per_epoch):
            for rows in one.micro_batches(one.step_rows(epoch, step), 20):
                found |= dict(zip(units(rows), rows.key.tolist(), strict=True))
        return found

    alone = keys(0)
    assert keys(0, rank=0, world_size=2) | keys(0, rank=1, world_size=2) == alone
    assert keys(0, batch_size=7) == alone
    others = [*alone.values(), *keys(1).values(), *keys(0, seed=2).values()]
    assert len(set(others)) == 3 * len(alone)


def test_the_key_of_a_step_is_that_of_seed_epoch_and_step(dataset: Storage) -> None:
    places = [(seed, epoch, step) for seed in (1, 2) for epoch in (0, 1) for step in (0, 1)]
    keys = [reader(dataset, seed=seed).step_key(epoch, step) for seed, epoch, step in places]
    again = [reader(dataset, seed=seed, rank=1, world_size=2).step_key(epoch, step) for seed, epoch, step in places]
    assert keys == again and len(set(keys)) == len(keys)


def test_epochs_and_seeds_differ_and_repeat(dataset: Storage) -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, ...]]:
        one = reader(dataset, seed=seed)
        return [unit for step in range(one.steps_per_epoch) for unit in units(one.step_rows(epoch, step))]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_a_step_is_found_without_reading_those_before(dataset: Storage) -> None:
    straight, resumed = reader(dataset), reader(dataset)
    for step in range(3):
        straight.step_rows(2, step)
    assert units(straight.step_rows(2, 3)) == units(resumed.step_rows(2, 3))


def test_all_windows_make_every_event_a_target_once(dataset: Storage) -> None:
    one = reader(dataset, windows="all", max_history=4)
    pairs = []
    for step in range(one.steps_per_epoch):
        for user, *items in units(one.step_rows(0, step)):
            assert len(items) <= 5
            pairs += [(user, *pair) for pair in itertools.pairwise(items)]
    assert len(pairs) == len(set(pairs)) == sum(max(length - 1, 0) for shard in SHARDS for length in shard)


def test_last_window_holds_the_latest_events(dataset: Storage) -> None:
    one = reader(dataset, max_history=4)
    whole = {unit[0]: unit[1:] for unit in units(load_histories(dataset, "train"))}
    for step in range(one.steps_per_epoch):
        for user, *items in units(one.step_rows(0, step)):
            assert tuple(items) == whole[user][-5:]


def test_micro_batches_hold_every_row_within_the_budget(dataset: Storage) -> None:
    one = reader(dataset, batch_size=NUM_ROWS)
    rows = one.step_rows(0, 0)
    groups = one.micro_batches(rows, max_tokens=20)
    assert sorted(unit for group in groups for unit in units(group)) == sorted(units(rows))
    assert len(groups) > 2
    for group in groups:
        assert len(group) == 1 or len(group) * int(group.lengths.max() - 1) <= 20
    assert one.micro_batches(reader(dataset, rank=4, world_size=5, batch_size=1).step_rows(0, 0), 20) == []


def test_plan_takes_streams_in_turn_and_drops_the_exhausted() -> None:
    streams, places = ReadingPlan(np.array([2, 0, 1, 3])).rows(0, 6)
    assert streams.tolist() == [0, 2, 3, 0, 3, 3]
    assert places.tolist() == [0, 0, 0, 1, 1, 2]


def test_more_workers_than_streams_are_refused(dataset: Storage) -> None:
    with pytest.raises(UsageError, match=r"Raise train\.num_streams to 6"):
        reader(dataset, rank=0, world_size=6)


def test_targets_are_read_once_by_all_ranks_together(dataset: Storage) -> None:
    seen = []
    for rank in range(4):
        one = TargetReader(dataset, "valid", rank=rank, world_size=4, batch_size=3)
        count = 0
        for rows, targets in one:
            assert len(rows) == len(targets.item) == len(targets.value) <= 3
            count += len(rows)
            seen += rows.user_row.tolist()
        assert count == one.num_rows
    assert sorted(seen) == list(range(NUM_ROWS))


def test_a_changed_shard_is_named(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[3, 4], [5]])
    shard = tmp_path / "dataset/train/00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(ArtefactError, match=r"train/00001\.parquet has SHA-256"):
        reader(dataset)


def test_no_dataset_is_an_artefact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="There is no dataset"):
        reader(Storage(tmp_path))
