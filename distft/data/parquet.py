"""Parquet files of an artefact: written the same way every time, so that equal tables are equal bytes.

Enters: an Arrow table and a place in a storage. Leaves: a zstd Parquet file, or the table read back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distft.errors import ArtefactError
from distft.storage import Storage, not_written

ROW_GROUP_ROWS = 1 << 14
OPTIONS: dict[str, Any] = {
    "compression": "zstd", "compression_level": 1, "store_schema": True, "write_page_checksum": True,
}  # fmt: skip


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Times as differences, all else by dictionary: a dictionary of times that are all different costs most of all."""
    leaves = {field.name: f"{field.name}.list.element" if _is_list(field.type) else field.name for field in schema}
    for field in schema:
        if _is_list(field.type) and _is_list(field.type.value_type):
            leaves[field.name] += ".list.element"
    times = [leaves[field.name] for field in schema if field.name.endswith("time_ms")]
    return {
        "use_dictionary": [leaf for leaf in leaves.values() if leaf not in times],
        "column_encoding": dict.fromkeys(times, "DELTA_BINARY_PACKED"),
    }


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def write_table(storage: Storage, name: str, table: pa.Table) -> None:
    """Writes a table to ``name``; the folder must be there. Raises StorageError."""
    table = table.replace_schema_metadata(None)
    write_tables(storage, name, table.schema, [table])


def write_tables(storage: Storage, name: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Writes the rows of several tables to one file, one table in memory at a time; returns their number.

    Folders are made by whoever starts the work, not here: a straggler of a cancelled run must not bring its
    deleted folder back. Raises StorageError; what ``tables`` raises passes through.
    """
    system, root = storage.filesystem()
    num_rows = 0
    unread: list[OSError] = []

    def read() -> Iterator[pa.Table]:
        try:
            yield from tables
        except OSError as error:
            unread.append(error)
            raise

    try:
        with (
            system.open_output_stream(f"{root}/{name}") as stream,
            pq.ParquetWriter(stream, schema, **OPTIONS, **_encodings(schema)) as writer,
        ):
            for table in read():
                writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
                num_rows += len(table)
    except OSError as error:
        if error in unread:
            raise
        raise not_written(f"{storage.uri}/{name}", error) from error
    return num_rows


def read_table(storage: Storage, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in a file, or some of its columns. Raises ArtefactError if it cannot be read as Parquet."""
    try:
        with storage.open_input(name) as stream:
            return pq.read_table(stream, columns=list(columns) if columns is not None else None)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtefactError(
            f"{storage.uri}/{name} cannot be read: {error}", "a Parquet file of distft", "Make the artefact again."
        ) from error
