from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distft.data.exchange import SCHEMA, ExchangeWriter, partition_of, read_partition
from distft.data.partition import NONE, Partition, load_arrays, save_arrays
from distft.storage import Storage


def events(first: int, size: int) -> pa.Table:
    """Events of 20 users, whose times number them."""
    number = np.arange(first, first + size)
    columns = {
        "user_id": [f"u{one % 20}" for one in number],
        "item_id": [None if one % 7 == 0 else f"i{one % 11}" for one in number],
        "event": np.ones(size, np.int8),
        "time_ms": number % 5,
        "query": ["a b" if one % 7 == 0 else None for one in number],
        "value": number.astype(np.float32),
        "quantity": pa.nulls(size, pa.float32()),
    }
    return pa.table(columns, schema=SCHEMA)


def test_partitions_hold_their_users_in_the_order_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distft.data.exchange.FLUSH_ROWS", 30)
    work = Storage(tmp_path)
    names, places = ["read-0", "read-1"], []
    for task, name in enumerate(names):
        with ExchangeWriter(work, name, 4) as writer:
            for start in range(0, 100, 20):
                writer.add(events(100 * task + start, 20))
        places.append(writer.partitions)
    seen = []
    for number in range(4):
        wanted = [[place for place, one in enumerate(of_file) if one == number] for of_file in places]
        table = read_partition(work, names, wanted)
        assert set(partition_of(table["user_id"].combine_chunks(), 4).tolist()) <= {number}
        for user in set(table["user_id"].to_pylist()):
            values = table.filter(pa.compute.equal(table["user_id"], user))["value"].to_pylist()
            assert values == sorted(values)
        seen += table["value"].to_pylist()
    assert sorted(seen) == list(range(200))


def test_sorting_is_stable_and_codes_are_sorted() -> None:
    partition = Partition.sort(events(0, 100))
    assert partition.user_ids.tolist() == sorted(partition.user_ids)
    assert partition.item_ids.tolist() == sorted(partition.item_ids)
    order = list(zip(partition.user.tolist(), partition.time_ms.tolist(), partition.value.tolist(), strict=True))
    assert order == sorted(order)
    assert ((partition.item == NONE) == (partition.value % 7 == 0)).all()
    assert np.isnan(partition.quantity).all()


def test_arrays_are_saved_and_some_of_them_loaded(tmp_path: Path) -> None:
    arrays = {
        "number": np.arange(5),
        "flag": np.array([True, False]),
        "none": np.zeros(0, np.int32),
        "text": np.array(["ä", ""], np.object_),
    }
    save_arrays(Storage(tmp_path), "file", arrays)
    found = load_arrays(Storage(tmp_path), "file", ["text", "flag", "none"])
    assert list(found) == ["text", "flag", "none"]
    for name, values in found.items():
        assert values.tolist() == arrays[name].tolist()
    assert found["none"].dtype == np.int32
