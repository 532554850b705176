"""Small datasets, written by hand as prepare writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from distft.data import ragged
from distft.data.parquet import write_table
from distft.schema import Histories, target_schema, train_schema
from distft.storage import Storage


def histories(lengths: list[int], first_user: int = 0) -> Histories:
    """Rows of these lengths; event j of all has item row 2 + j and the time j seconds."""
    offsets = ragged.offsets_of(np.array(lengths, np.int64))
    events = np.arange(offsets[-1])
    return Histories(
        offsets=offsets,
        item_row=(2 + events).astype(np.int32),
        event=np.ones(len(events), np.int8),
        time_ms=events * 1000,
        query_offsets=ragged.offsets_of(events % 2),
        query_tokens=np.full(int((events % 2).sum()), 3, np.int32),
        user_row=np.arange(first_user, first_user + len(lengths), dtype=np.int32),
        value=events.astype(np.float32),
    )


def columns(rows: Histories) -> list[pa.Array]:
    """The Arrow columns of ``rows``, with user ids u0, u1, …"""
    names = pa.array([f"u{row}" for row in rows.user_row], pa.string())
    return ragged.to_arrays(rows, names, np.zeros(len(rows), np.int32))


def write_dataset(path: Path, shard_lengths: list[list[int]]) -> Storage:
    """A committed dataset whose training shards hold rows of the given lengths, and as many targets in valid/."""
    dataset = Storage(path)
    (dataset / "train").make()
    (dataset / "valid").make()
    counts, first = {}, 0
    for number, lengths in enumerate(shard_lengths):
        rows = histories(lengths, first)
        first += len(lengths)
        name = f"train/{number:05d}.parquet"
        write_table(dataset, name, pa.Table.from_arrays(columns(rows), schema=train_schema()))
        size = len(lengths)
        targets = [
            pa.array(np.full(size, 2), pa.int32()),
            pa.array(np.ones(size), pa.int8()),
            pa.array(np.arange(size), pa.int64()),
            pa.array(np.zeros(size), pa.float32()),
        ]
        table = pa.Table.from_arrays(columns(rows) + targets, schema=target_schema())
        write_table(dataset, f"valid/{number:05d}.parquet", table)
        counts |= {name: size, f"valid/{number:05d}.parquet": size}
    dataset.write_manifest("dataset", rows=counts, info={"has_clock": True})
    return dataset
