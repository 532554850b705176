"""A dataset whose next item can be learnt: every user walks round a circle of items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distft.data import ragged
from distft.data.encode import Encoder
from distft.data.parquet import write_table
from distft.job import Job
from distft.schema import NUM_RESERVED, Histories, target_schema, train_schema
from distft.storage import Storage
from tests.data.datasets import columns

NUM_SHOWN = 12


def walks(num_users: int, first_user: int, seed: int) -> Histories:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 11, num_users)
    offsets = ragged.offsets_of(lengths)
    starts = np.repeat(rng.integers(0, NUM_SHOWN, num_users), lengths)
    item_row = NUM_RESERVED + (starts + np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)) % NUM_SHOWN
    return Histories(
        offsets=offsets,
        item_row=item_row.astype(np.int32),
        event=np.ones(len(item_row), np.int8),
        time_ms=np.arange(len(item_row)) * 60_000,
        query_offsets=np.zeros(len(item_row) + 1, np.int64),
        query_tokens=np.zeros(0, np.int32),
        user_row=np.arange(first_user, first_user + num_users, dtype=np.int32),
        value=np.ones(len(item_row), np.float32),
    )


def write_circle(root: Path, num_shards: int = 4, users_per_shard: int = 16, valid: bool = True) -> Storage:
    """``<root>/dataset``: training walks, and for each user the item that follows as validation target."""
    dataset = Storage(root / "dataset")
    item_ids = np.array(["", "", *(f"item-{n}" for n in range(NUM_SHOWN))], object)
    counts = np.concatenate([[0, 0], np.full(NUM_SHOWN, 9)]).astype(np.int64)
    for folder in ("encoder", "train", "valid"):
        (dataset / folder).make()
    Encoder(("purchase",), ("purchase",), True, item_ids, counts).save(dataset / "encoder")
    rows = {}
    for number in range(num_shards):
        histories = walks(users_per_shard, number * users_per_shard, number)
        name = f"train/{number:05d}.parquet"
        write_table(dataset, name, pa.Table.from_arrays(columns(histories), schema=train_schema()))
        rows[name] = users_per_shard
        if valid:
            last = histories.item_row[histories.offsets[1:] - 1]
            following = NUM_RESERVED + (last - NUM_RESERVED + 1) % NUM_SHOWN
            targets = [
                pa.array(following, pa.int32()),
                pa.array(np.ones(users_per_shard), pa.int8()),
                pa.array(np.zeros(users_per_shard), pa.int64()),
                pa.array(np.ones(users_per_shard), pa.float32()),
            ]
            table = pa.Table.from_arrays(columns(histories) + targets, schema=target_schema())
            write_table(dataset, f"valid/{number:05d}.parquet", table)
            rows[f"valid/{number:05d}.parquet"] = users_per_shard
    dataset.write_manifest("dataset", rows=rows, info={"has_clock": True})
    return Storage(root)


def circle_job(
    root: Path, model: dict[str, Any] | None = None, scaling: dict[str, Any] | None = None, **train: Any
) -> Job:
    """A small job on that dataset; ``train`` overrides its section."""
    section = {"epochs": 2, "batch_size": 20, "learning_rate": 0.02, "num_streams": 4, **train}
    return Job.model_validate(
        {
            "name": "circle",
            "storage": str(root),
            "data": {"events": [{"source": "files", "path": "none.csv", "event": "purchase", "columns": _COLUMNS}]},
            "model": {
                "kind": "transformer",
                "dim": 16,
                "num_heads": 2,
                "max_history": 8,
                "dropout": 0.1,
                **(model or {}),
            },
            "train": section,
            "scaling": {"use_gpu": False, **(scaling or {})},
            "evaluate": {"k": [1, 5, 10], "exclude_seen": "none"},
        }
    )


_COLUMNS = {"user_id": "u", "item_id": "i", "timestamp": "t"}
