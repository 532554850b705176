"""A partition of the log: all events of some users, as columns of codes; and the work files that hold such columns.

Enters and leaves: ``Partition``. Its events are sorted by (user, time, original position) and stay so.

A work file is an Arrow IPC file of one row with one list column an array: any stage reads only the arrays that it
needs. Work files live in the staging folder and are gone when the dataset is committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distft.data.ragged import offsets_of
from distft.storage import Storage, explained

if TYPE_CHECKING:
    from numpy.typing import NDArray

NONE = -1
"""Code of an absent item or query, and time of an event without one."""


@dataclass(frozen=True, eq=False)
class Partition:
    """Events of some users. ``user``, ``item`` and ``query`` are codes of ``user_ids``, ``item_ids``, ``queries``.

    The id lists are sorted; ``item`` and ``query`` are NONE where there is none. ``value`` and ``quantity`` are NaN
    where they are not known; a negative quantity marks a cancellation, until those are taken out.
    """

    user_ids: NDArray[np.object_]
    item_ids: NDArray[np.object_]
    queries: NDArray[np.object_]
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    event: NDArray[np.int8]
    time_ms: NDArray[np.int64]
    query: NDArray[np.int32]
    value: NDArray[np.float32]
    quantity: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.user)

    @property
    def user_offsets(self) -> NDArray[np.int64]:
        """User u's events are ``user_offsets[u]:user_offsets[u + 1]``."""
        return offsets_of(np.bincount(self.user, minlength=len(self.user_ids)))

    def where(self, keep: NDArray[np.bool_]) -> Partition:
        """Only some events; the id lists stay."""
        kept = {field.name: getattr(self, field.name)[keep] for field in fields(self) if field.name in _EVENT_COLUMNS}
        return Partition(self.user_ids, self.item_ids, self.queries, **kept)

    def save(self, work: Storage, name: str) -> None:
        """Writes the partition to a work file."""
        save_arrays(work, name, {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, work: Storage, name: str) -> Partition:
        """The partition in a work file."""
        return cls(**load_arrays(work, name, [field.name for field in fields(cls)]))

    @classmethod
    def sort(cls, table: pa.Table) -> Partition:
        """The events of an exchange file's table, sorted stably by (user, time)."""
        user_ids, user = _codes(table["user_id"])
        item_ids, item = _codes(table["item_id"])
        queries, query = _codes(table["query"])
        time_ms = pc.fill_null(table["time_ms"], NONE).to_numpy()
        order = order_of(user, time_ms)
        return cls(
            user_ids=user_ids,
            item_ids=item_ids,
            queries=queries,
            user=user[order],
            item=item[order],
            event=table["event"].to_numpy()[order],
            time_ms=time_ms[order],
            query=query[order],
            value=pc.fill_null(table["value"], float("nan")).to_numpy()[order],
            quantity=pc.fill_null(table["quantity"], float("nan")).to_numpy()[order],
        )


def order_of(user: NDArray[np.int32], time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the events stand that come 1st, 2nd, … by (user, time), stably: what ``np.lexsort`` gives, sooner.

    Logs are mostly in time order already, and users are few enough for two rounds of NumPy's radix sort.
    """
    order = np.arange(len(user))
    if (np.diff(time_ms) < 0).any():
        order = np.argsort(time_ms, kind="stable")
    for digit in (user, user >> 16) if len(user) and user.max() > 0xFFFF else (user,):
        order = order[np.argsort(digit[order].astype(np.uint16), kind="stable")]
    return order


_EVENT_COLUMNS = frozenset({"user", "item", "event", "time_ms", "query", "value", "quantity"})


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[np.object_], NDArray[np.int32]]:
    """(sorted distinct values, code of each row; NONE for null)."""
    encoded = column.combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order) + 1, np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    rank[-1] = NONE
    codes = pc.fill_null(encoded.indices, len(order)).to_numpy()
    return encoded.dictionary.to_numpy(zero_copy_only=False)[order], rank[codes]


def save_arrays(work: Storage, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes named arrays (numbers, or objects that are strings) to a work file. Raises StorageError."""
    columns = {}
    for key, values in arrays.items():
        flat = pa.array(values, pa.string()) if values.dtype == object else pa.array(values)
        columns[key] = pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), flat)
    table = pa.table(columns)
    system, root = work.filesystem()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        explained(f"{work.uri}/{name}"),
        system.open_output_stream(f"{root}/{name}") as stream,
        pa.ipc.new_file(stream, table.schema, options=options) as writer,
    ):
        writer.write_table(table)


def load_arrays(work: Storage, name: str, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Some arrays of a work file."""
    with work.open_input(name) as stream:
        names = pa.ipc.open_file(stream).schema.names
        options = pa.ipc.IpcReadOptions(included_fields=[names.index(key) for key in keys])
        batch = pa.ipc.open_file(stream, options=options).get_batch(0)
        return {key: _numpy(batch.column(key).flatten()) for key in keys}


def _numpy(array: pa.Array) -> NDArray[Any]:
    return np.asarray(array.to_numpy(zero_copy_only=False))
