"""The latest events of every user of a dataset, in the shop's own words: ``bundle/histories/``.

Enters: a dataset and its encoder. Leaves: Parquet files with a row a user, and from these a user's events again.
Surprising choice: a user's history is the last target of the latest split with the events before it, because a dataset
holds nothing else of what came after the training part.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distft.data import ragged
from distft.data.encode import NO_TIME, UNKNOWN_WORD, Encoder, RawEvent
from distft.data.parquet import read_table, write_table
from distft.data.shards import split_files
from distft.errors import ArtefactError
from distft.schema import PAD, UNKNOWN, Histories
from distft.storage import Storage

FOLDER = "histories"
SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string()),
        pa.field("item_id", pa.list_(pa.string())),
        pa.field("event", pa.list_(pa.string())),
        pa.field("time_ms", pa.list_(pa.int64())),
        pa.field("query", pa.list_(pa.string())),
        pa.field("value", pa.list_(pa.float32())),
    ]
)
_TARGET = ("target_item", "target_event", "target_time_ms", "target_value")


def write_histories(dataset: Storage, encoder: Encoder, bundle: Storage, max_events: int) -> int:
    """Writes ``<bundle>/histories/*.parquet``, at most ``max_events`` of every user; gives the number of users."""
    manifest = dataset.manifest("dataset")
    if manifest is None:
        raise ArtefactError(f"There is no dataset at {dataset}", "", "Run 'distft prepare' first.")
    (bundle / FOLDER).make()
    done: set[str] = set()
    for split in ("test", "valid", "train"):
        for name in split_files(manifest, split):
            dataset.verify_file(name, manifest.files[name])
            table = _latest(read_table(dataset, name), split)
            table = table.filter(pc.invert(pc.is_in(table["user_id"], pa.array(sorted(done), pa.string()))))
            if len(table):
                done.update(table["user_id"].to_pylist())
                told = _told(table, encoder, max_events, with_target=split != "train")
                write_table(bundle, f"{FOLDER}/{name.replace('/', '-')}", told)
    return len(done)


def read_histories(bundle: Storage) -> Iterator[tuple[str, list[RawEvent]]]:
    """(user, events) of every user of ``bundle/histories/``; in a shop without a clock the time is the place."""
    for name in bundle.list(FOLDER):
        for batch in read_table(bundle, name).to_batches(max_chunksize=1_000):
            for row in batch.to_pylist():
                times = [place if time is None else time for place, time in enumerate(row["time_ms"])]
                columns = (row["item_id"], row["event"], times, row["query"], row["value"])
                yield row["user_id"], [RawEvent(*event) for event in zip(*columns, strict=True)]


def _latest(table: pa.Table, split: str) -> pa.Table:
    """The last row of every user: of the last target, or the last part of a long history."""
    order = [("user_id", "ascending"), ("part" if split == "train" else "target_time_ms", "ascending")]
    table = table.append_column("row", pa.array(np.arange(len(table)))).sort_by([*order, ("row", "ascending")])
    users = table["user_id"].to_numpy(zero_copy_only=False)
    return table.filter(pa.array(np.append(users[1:] != users[:-1], True)[: len(users)]))


def _told(table: pa.Table, encoder: Encoder, max_events: int, *, with_target: bool) -> pa.Table:
    """Rows of a split in the shop's words, the target of each as its last event."""
    histories = ragged.from_table(table)
    if with_target:
        histories = _with_targets(histories, [table[name].to_numpy() for name in _TARGET])
    start = np.maximum(histories.offsets[:-1], histories.offsets[1:] - max_events)
    histories = ragged.gather(histories, start, histories.offsets[1:], histories.user_row)
    offsets = pa.array(histories.offsets.astype(np.int32))
    columns = [table["user_id"].combine_chunks().cast(pa.string())]
    columns += [pa.ListArray.from_arrays(offsets, values) for values in _columns(histories, encoder)]
    return pa.table(columns, schema=SCHEMA)


def _with_targets(histories: Histories, target: list[NDArray[np.generic]]) -> Histories:
    item, event, time_ms, value = target
    ones = np.arange(len(histories) + 1, dtype=np.int64)
    targets = Histories(
        offsets=ones,
        item_row=item.astype(np.int32),
        event=event.astype(np.int8),
        time_ms=time_ms.astype(np.int64),
        query_offsets=np.zeros(len(histories) + 1, np.int64),
        query_tokens=np.zeros(0, np.int32),
        user_row=histories.user_row,
        value=value.astype(np.float32),
    )
    both = ragged.concat([histories, targets])
    num_events, lengths = int(histories.offsets[-1]), histories.lengths
    order = np.insert(np.arange(num_events), histories.offsets[1:], num_events + np.arange(len(histories)))
    return ragged.gather_events(both, order.astype(np.int64), lengths + 1, histories.user_row)


def _columns(histories: Histories, encoder: Encoder) -> list[pa.Array]:
    """Item id, event type, time, query and value of every event; null where there is none."""
    rows = histories.item_row
    ids = pa.array(encoder.item_ids, pa.string()).take(pa.array(rows)).to_numpy(zero_copy_only=False)
    ids[rows == UNKNOWN] = UNKNOWN_WORD
    item_id = pa.array(ids, pa.string(), mask=rows == PAD)
    event = pa.array(encoder.event_names, pa.string()).take(pa.array(histories.event.astype(np.int64) - 1))
    time_ms = pa.array(histories.time_ms, pa.int64(), mask=histories.time_ms == NO_TIME)
    words = [word or UNKNOWN_WORD for word in encoder.token_words]
    tokens = pa.array(words, pa.string()).take(pa.array(histories.query_tokens))
    lists = pa.ListArray.from_arrays(pa.array(histories.query_offsets.astype(np.int32)), tokens)
    query = pc.if_else(pc.greater(pc.list_value_length(lists), 0), pc.binary_join(lists, " "), None)
    least = encoder.label_at_least or 0.0
    shown = np.isin(histories.event, encoder.label_codes)
    values = histories.value if len(histories.value) else np.zeros(len(rows), np.float32)
    value = pa.array(np.where(values >= 0.5, least, least - 1).astype(np.float32), mask=~shown)
    return [item_id, event, time_ms, query, value]
