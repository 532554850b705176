"""``source: files``: a shop's own event logs, as CSV, JSON Lines or Parquet.

A read task is a file; of a Parquet file, a run of its row groups. The log's order is the order of the file names,
then of the records.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from distft.data.sources.base import EventBatch, FeatureTable, Oracle, ReadTask
from distft.data.sources.columns import ID, NUMBER, TIME, WORDS, Kind, check_columns, check_keys, check_types
from distft.data.sources.files.config import Config
from distft.data.sources.inputs import Format, Input, find_inputs
from distft.data.sources.records import (
    CsvDialect,
    JsonMembers,
    Records,
    csv_header,
    parquet_groups,
    parquet_schema,
    read_csv,
    read_jsonl,
    read_parquet,
)
from distft.data.sources.selection import Selection
from distft.data.sources.typed import Mapping, Typing
from distft.errors import DataError
from distft.schema import EVENT, EVENT_TYPES, ITEM_ID, QUANTITY, QUERY, TIMESTAMP, USER_ID, VALUE
from distft.storage import Storage

TASK_BYTES = 1 << 26
"""Row groups of a Parquet file are read together up to this size."""

_NEEDED = (USER_ID, ITEM_ID, EVENT, TIMESTAMP)
_KINDS: dict[str, Kind] = {
    **dict.fromkeys((USER_ID, ITEM_ID, EVENT), ID), TIMESTAMP: TIME, QUERY: WORDS, VALUE: NUMBER, QUANTITY: NUMBER,
}  # fmt: skip


class Files:
    """The log that a config names."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.has_clock = TIMESTAMP in config.columns
        self._dialect = CsvDialect(config.separator, config.header)
        event_types = config.event_types or {name: name for name in EVENT_TYPES}
        self._mapping = Mapping(
            columns={str(ours): theirs for ours, theirs in config.columns.items()},
            event_names=config.event_names(),
            event=config.event,
            event_types=event_types,
            timestamp_unit=config.timestamp_unit,
        )
        self._selection = Selection(config.where, config.where_not)
        named = self._mapping.columns | self._selection.columns
        self._members = JsonMembers(
            flat=frozenset(theirs for ours, theirs in named.items() if ours != QUERY),
            ids=frozenset(named[ours] for ours in (USER_ID, ITEM_ID) if ours in named),
        )

    def read_tasks(self) -> list[ReadTask]:
        inputs = find_inputs(self._config.path)
        filled = [one for one in inputs if one.num_bytes()]
        if not filled:
            raise DataError(f"{inputs[0].name} is empty", "records", "Check the file, or its path.")
        self._check(filled[0])
        return [task for one in filled for task in self._tasks(one)]

    def read(self, task: ReadTask) -> Iterator[EventBatch]:
        source = Input(task.file, Storage(task.position["folder"]), task.position["file"])
        self._check(source)
        typing = Typing(self._mapping, task.file)
        for records in self._records(source, task):
            chosen, num_left_out = self._selection.of(records)
            yield replace(typing.batch(chosen), num_left_out=num_left_out)

    def identity(self) -> dict[str, Any]:
        return {"files": [one.identity() for one in find_inputs(self._config.path)]}

    def items(self) -> FeatureTable | None:
        return None

    def users(self) -> FeatureTable | None:
        return None

    def oracle(self) -> Oracle | None:
        return None

    def _format(self, source: Input) -> Format:
        return source.format() if self._config.format == "auto" else self._config.format

    def _tasks(self, source: Input) -> Iterator[ReadTask]:
        position: dict[str, Any] = {"folder": source.folder.uri, "file": source.file}
        if self._format(source) != "parquet":
            yield ReadTask(source.name, source.num_bytes(), position)
            return
        for groups, first_row, size in group_runs(parquet_groups(source)):
            span = {"groups": [groups.start, groups.stop], "first_row": first_row}
            yield ReadTask(source.name, size, position | span)

    def _records(self, source: Input, task: ReadTask) -> Iterator[Records]:
        names = [*self._mapping.columns.values(), *self._selection.columns.values()]
        kind = self._format(source)
        if kind == "csv":
            return read_csv(source, self._dialect)
        if kind == "jsonl":
            return read_jsonl(source, names, self._members)
        return read_parquet(source, names, range(*task.position["groups"]), task.position["first_row"])

    def _check(self, source: Input) -> None:
        kind = self._format(source)
        chosen = self._selection.columns
        columns = self._mapping.columns | chosen
        if kind == "csv":
            check_columns(source, csv_header(source, self._dialect), columns)
        elif kind == "jsonl":
            check_keys(source, source.peek(), columns, (*_NEEDED, *chosen))
        else:
            schema = parquet_schema(source)
            check_columns(source, tuple(schema.names), columns)
            check_types(source, schema, columns, _KINDS | dict.fromkeys(chosen, ID))


def group_runs(groups: list[tuple[int, int]]) -> Iterator[tuple[range, int, int]]:
    """(row groups, records before them, bytes) of each task, from (rows, bytes) of each row group."""
    start, first_row, rows, size = 0, 0, 0, 0
    for place, (group_rows, group_bytes) in enumerate(groups):
        rows, size = rows + group_rows, size + group_bytes
        if size >= TASK_BYTES or place == len(groups) - 1:
            yield range(start, place + 1), first_row, size
            start, first_row, rows, size = place + 1, first_row + rows, 0, 0
