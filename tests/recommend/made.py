"""Histories as files, for the tests of batch scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from distft.data.encode import RawEvent
from distft.data.histories import SCHEMA
from distft.data.parquet import write_table
from distft.storage import Storage
from tests.serve.bundles import events


def table(users: Mapping[str, Sequence[RawEvent]]) -> pa.Table:
    """A row a user, as ``export`` writes them."""
    names = ("item_id", "event", "time_ms", "query", "value")
    rows = [
        {"user_id": user, **{name: [getattr(event, name) for event in some] for name in names}}
        for user, some in users.items()
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def users(first: int, count: int) -> dict[str, list[RawEvent]]:
    """Users u<first>, u<first + 1>, … with histories of 0 to 24 events."""
    return {f"u{number}": events(number, number % 25) for number in range(first, first + count)}


def write_files(folder: Storage, sizes: Sequence[int]) -> dict[str, list[RawEvent]]:
    """One file of histories for each size; gives all users."""
    folder.make()
    everybody: dict[str, list[RawEvent]] = {}
    for number, size in enumerate(sizes):
        some = users(len(everybody), size)
        write_table(folder, f"file-{number}.parquet", table(some))
        everybody |= some
    return everybody
