"""The exchange: events go from the order of the logs to partitions of users, through storage.

Every read task writes one Arrow IPC file; its record batches hold the events of one partition each, and the list of
their partitions is handed on as JSON. A partition is then read from all those files, in the order of the tasks, so
that its events stand in the original order of the logs. Memory is bounded by ``FLUSH_ROWS`` on one side and by the
size of a partition on the other; nothing needs one machine.

The partition of a user is ``hashing.hash_texts(user_id)`` modulo the number of partitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from distft.data.hashing import hash_texts
from distft.data.ragged import offsets_of
from distft.storage import Storage, explained

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLUSH_ROWS = 1 << 19
PARTITION_BYTES = 1 << 27
NUM_PARTITIONS = 64

SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("event", pa.int8()),
        ("time_ms", pa.int64()),
        ("query", pa.string()),
        ("value", pa.float32()),
        ("quantity", pa.float32()),
    ]
)


def num_partitions(num_bytes: int) -> int:
    """Partitions, and so shards, of a log of this size: a multiple of 64; never a matter of CPUs."""
    return NUM_PARTITIONS * max(1, -(-num_bytes // (NUM_PARTITIONS * PARTITION_BYTES)))


def partition_of(user_ids: pa.Array, count: int) -> NDArray[np.unsignedinteger]:
    """The partition of every row, in the smallest type that holds it: NumPy sorts short integers by radix."""
    encoded = user_ids.dictionary_encode()
    of_user = (hash_texts(encoded.dictionary) % np.uint64(count)).astype(np.min_scalar_type(count))
    return np.asarray(of_user[encoded.indices.to_numpy()])


class ExchangeWriter:
    """Writes the events of one read task, partition by partition; ``partitions`` lists the record batches' ones.

    Raises StorageError.
    """

    def __init__(self, work: Storage, name: str, count: int) -> None:
        self._place = f"{work.uri}/{name}"
        system, root = work.filesystem()
        with explained(self._place):
            self._stream = system.open_output_stream(f"{root}/{name}")
            self._writer = pa.ipc.new_file(self._stream, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4"))
        self._count = count
        self._waiting: list[pa.Table] = []
        self.partitions: list[int] = []

    def __enter__(self) -> ExchangeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        with suppress(OSError) if kind is not None else explained(self._place):
            self._writer.close()
            self._stream.close()

    def add(self, events: pa.Table) -> None:
        """Takes some events by ``SCHEMA``."""
        self._waiting.append(events)
        if sum(map(len, self._waiting)) >= FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not sum(map(len, self._waiting)):
            return
        table = pa.concat_tables(self._waiting)
        self._waiting = []
        partition = partition_of(table["user_id"].combine_chunks(), self._count)
        table = table.take(np.argsort(partition, kind="stable")).combine_chunks()
        batch = table.to_batches()[0]
        offsets = offsets_of(np.bincount(partition, minlength=self._count)).tolist()
        with explained(self._place):
            for number, (start, end) in enumerate(pairwise(offsets)):
                if end > start:
                    self._writer.write_batch(batch.slice(start, end - start))
                    self.partitions.append(number)


def read_partition(work: Storage, names: Sequence[str], places: Sequence[Sequence[int]]) -> pa.Table:
    """The events of a partition: of each file in turn, its record batches at ``places``."""
    batches = []
    for name, wanted in zip(names, places, strict=True):
        if wanted:
            with work.open_input(name) as stream:
                reader = pa.ipc.open_file(stream)
                batches += [reader.get_batch(place) for place in wanted]
    return pa.Table.from_batches(batches, schema=SCHEMA)
