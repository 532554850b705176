"""``source: sequences``: one user a line, "user item item ...", in time order; the layout of the S3-Rec papers.

There is no clock, only the order of the items in a line, and of the lines of a user who has several. A record is an
event, so that rows are accounted for one by one; ``row`` is therefore the number of the line for all of its events.
A line that names a user and no item, or is not text, is one rejected row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from distft.data.sources.base import EventBatch, FeatureTable, Oracle, ReadTask, event_schema
from distft.data.sources.inputs import Input, find_inputs
from distft.data.sources.records import UNDECODABLE, lines_of, rejected_table
from distft.data.sources.sequences.config import Config
from distft.data.sources.typed import MISSING_ITEM
from distft.errors import DataError
from distft.storage import Storage

BATCH_EVENTS = 1 << 17

_Line = tuple[int, list[str]]
_Reject = tuple[int, str, str, str | None]


class Sequences:
    """The log that a config names, and the attributes of its items."""

    has_clock = False

    def __init__(self, config: Config) -> None:
        self._config = config

    def read_tasks(self) -> list[ReadTask]:
        inputs = find_inputs(self._config.path)
        for one in inputs:
            one.peek()
        return [ReadTask(one.name, one.num_bytes(), {"folder": one.folder.uri, "file": one.file}) for one in inputs]

    def read(self, task: ReadTask) -> Iterator[EventBatch]:
        source = Input(task.file, Storage(task.position["folder"]), task.position["file"])
        lines: list[_Line] = []
        bad: list[_Reject] = []
        waiting = 0
        with source.opened() as stream, lines_of(stream) as text:
            for number, line in enumerate(text, start=1):
                words = _words(line)
                if words is None or len(words) == 1:
                    reason = UNDECODABLE if words is None else MISSING_ITEM
                    text_of = line.decode(errors="replace").rstrip("\r\n")
                    bad.append((number, reason, text_of, words[0] if words else None))
                elif words:
                    lines.append((number, words))
                waiting += len(words or ())
                if waiting >= BATCH_EVENTS:
                    yield self._batch(task.file, lines, bad)
                    lines, bad, waiting = [], [], 0
        if lines or bad:
            yield self._batch(task.file, lines, bad)

    def identity(self) -> dict[str, Any]:
        paths = [self._config.path, *([self._config.attributes] if self._config.attributes else [])]
        return {"files": [one.identity() for path in paths for one in find_inputs(path)]}

    def items(self) -> FeatureTable | None:
        if self._config.attributes is None:
            return None
        source = find_inputs(self._config.attributes)[0]
        with source.opened() as stream:
            attributes = _attributes(source.name, stream.read())
        columns = {
            "item_id": pa.array(attributes, pa.string()),
            "attributes": pa.array(attributes.values(), pa.list_(pa.string())),
        }
        return FeatureTable(pa.table(columns), "item_id")

    def users(self) -> FeatureTable | None:
        return None

    def oracle(self) -> Oracle | None:
        return None

    def _batch(self, file: str, lines: list[_Line], bad: list[_Reject]) -> EventBatch:
        lengths = np.array([len(words) - 1 for _, words in lines], np.int64)
        size = int(lengths.sum())
        codes = pa.array(np.zeros(size, np.int8))
        columns: dict[str, Any] = {
            "row": np.repeat(np.array([number for number, _ in lines], np.int64), lengths),
            "user_id": np.repeat(np.array([words[0] for _, words in lines], np.object_), lengths),
            "item_id": [item for _, words in lines for item in words[1:]],
            "event": pa.DictionaryArray.from_arrays(codes, pa.array(self._config.event_names())),
        }
        schema = event_schema()
        arrays = [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(size, field.type)
            for field in schema
        ]
        return EventBatch(pa.Table.from_arrays(arrays, schema=schema), rejected_table(file, bad))


def _words(line: bytes) -> list[str] | None:
    """The words of a line; None if it is not UTF-8."""
    try:
        return line.decode().split()
    except UnicodeDecodeError:
        return None


def _attributes(name: str, text: bytes) -> dict[str, list[str]]:
    """{item: attributes as text}. Raises DataError if the file holds anything else."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{name} is not JSON: {error}", "{item: [attribute, ...]}", "Check the file.") from error
    if not isinstance(value, dict) or not value:
        raise DataError(f"{name} is not a JSON object of items", "{item: [attribute, ...]}", "Check the file.")
    for item, found in value.items():
        if not isinstance(found, list):
            what = f"{name} has {json.dumps(found)[:80]} as the attributes of item '{item}'"
            raise DataError(what, "a list: [attribute, ...]", "Convert the file.")
    return {item: [str(one) for one in found] for item, found in value.items()}
