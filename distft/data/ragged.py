"""Ragged arrays: slices, rows and concatenation of ``Histories``, and their columns in Arrow.

Everything here is vectorised over events; no function walks over users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from distft.schema import Histories, history_fields

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64 = NDArray[np.int64]

_T = TypeVar("_T", bound=np.generic)


def offsets_of(lengths: NDArray[np.integer]) -> Int64:
    """0, then the running sum: where each row starts, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def ranges(starts: Int64, lengths: Int64) -> Int64:
    """start, start + 1, … (length of them) for each pair, one after the other."""
    offsets = offsets_of(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])


def gather(histories: Histories, starts: Int64, ends: Int64, user_row: NDArray[np.int32]) -> Histories:
    """New rows, each the events ``starts[i]:ends[i]`` of ``histories``."""
    return gather_events(histories, ranges(starts, ends - starts), ends - starts, user_row)


def gather_events(histories: Histories, events: Int64, lengths: Int64, user_row: NDArray[np.int32]) -> Histories:
    """New rows of these lengths, made of any ``events`` of ``histories``, one row after the other."""
    query_starts = histories.query_offsets[events]
    query_lengths = histories.query_offsets[events + 1] - query_starts
    has_time, has_value = len(histories.time_ms), len(histories.value)
    return Histories(
        offsets=offsets_of(lengths),
        item_row=histories.item_row[events],
        event=histories.event[events],
        time_ms=histories.time_ms[events] if has_time else histories.time_ms,
        query_offsets=offsets_of(query_lengths),
        query_tokens=histories.query_tokens[ranges(query_starts, query_lengths)],
        user_row=user_row,
        value=histories.value[events] if has_value else histories.value,
    )


def take(histories: Histories, rows: NDArray[np.integer]) -> Histories:
    """Some rows, in the order asked for."""
    taken = gather(histories, histories.offsets[rows], histories.offsets[rows + 1], histories.user_row[rows])
    return replace(taken, key=histories.key[rows]) if len(histories.key) else taken


def concat(parts: Sequence[Histories]) -> Histories:
    """The rows of several histories, one after the other; of none: an empty one."""
    if not parts:
        return empty()
    return Histories(
        offsets=offsets_of(np.concatenate([part.lengths for part in parts])),
        item_row=np.concatenate([part.item_row for part in parts]),
        event=np.concatenate([part.event for part in parts]),
        time_ms=np.concatenate([part.time_ms for part in parts]),
        query_offsets=offsets_of(np.concatenate([np.diff(part.query_offsets) for part in parts])),
        query_tokens=np.concatenate([part.query_tokens for part in parts]),
        user_row=np.concatenate([part.user_row for part in parts]),
        value=np.concatenate([part.value for part in parts]),
        key=np.concatenate([part.key for part in parts]),
    )


def empty() -> Histories:
    """No rows."""
    return Histories(
        offsets=np.zeros(1, np.int64),
        item_row=np.zeros(0, np.int32),
        event=np.zeros(0, np.int8),
        time_ms=np.zeros(0, np.int64),
        query_offsets=np.zeros(1, np.int64),
        query_tokens=np.zeros(0, np.int32),
        user_row=np.zeros(0, np.int32),
        value=np.zeros(0, np.float32),
    )


def from_table(table: pa.Table) -> Histories:
    """The histories in the rows of a shard; columns that the table lacks come out empty."""
    event = _list(table, "event")
    if event is None:
        raise AssertionError("a shard is read with its event column")
    offsets = event.offsets.to_numpy().astype(np.int64)
    num_events = int(offsets[-1] - offsets[0])
    query = _list(table, "query")
    if query is None:
        query_offsets, tokens = np.zeros(num_events + 1, np.int64), np.zeros(0, np.int32)
    else:
        inner = query.flatten()
        query_offsets = inner.offsets.to_numpy().astype(np.int64)
        query_offsets, tokens = query_offsets - query_offsets[0], inner.flatten().to_numpy()
    return Histories(
        offsets=offsets - offsets[0],
        item_row=_flat(table, "item_row", np.int32),
        event=_flat(table, "event", np.int8),
        time_ms=_flat(table, "time_ms", np.int64),
        query_offsets=query_offsets,
        query_tokens=tokens,
        user_row=table["user_row"].to_numpy(),
        value=_flat(table, "value", np.float32),
    )


def to_arrays(histories: Histories, user_ids: pa.Array, part: NDArray[np.int32]) -> list[pa.Array]:
    """The columns of ``schema.history_fields()``."""
    offsets = pa.array(histories.offsets.astype(np.int32))
    inner = pa.ListArray.from_arrays(
        pa.array(histories.query_offsets.astype(np.int32)), pa.array(histories.query_tokens, pa.int32())
    )
    flat = {
        "item_row": histories.item_row,
        "event": histories.event,
        "time_ms": histories.time_ms,
        "value": histories.value,
    }
    arrays = {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in flat.items()}
    arrays |= {
        "user_row": pa.array(histories.user_row),
        "user_id": user_ids,
        "part": pa.array(part),
        "query": pa.ListArray.from_arrays(offsets, inner),
    }
    return [arrays[field.name].cast(field.type) for field in history_fields()]


def _list(table: pa.Table, name: str) -> pa.ListArray | None:
    if name not in table.column_names:
        return None
    chunks = table[name].chunks
    return pa.concat_arrays(chunks) if chunks else pa.array([], table[name].type)


def _flat(table: pa.Table, name: str, dtype: type[_T]) -> NDArray[_T]:
    array = _list(table, name)
    return np.zeros(0, dtype) if array is None else np.asarray(array.flatten().to_numpy(), dtype)
