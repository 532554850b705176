"""``distft data synth``: writes the made-up log of a job as files, to be read like anybody's own.

Enters: a job with a ``synthetic`` source. Leaves: ``events/`` and ``items/`` in a folder, and the part of a job
file that reads them. The log is streamed part by part, so its length is bounded by the disk alone.

Surprising choice: each of the two folders is an artefact with a manifest: it is there whole or not at all, and a
folder that is not of this kind is never replaced.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
from ruamel.yaml import YAML

from distft.component import SourceConfig
from distft.data.sources.base import FeatureTable, Source
from distft.errors import StorageError, UsageError
from distft.job import Job
from distft.schema import EVENT, ITEM_ID, QUANTITY, QUERY, TIMESTAMP, USER_ID, VALUE
from distft.storage import Storage

Format = Literal["csv", "parquet"]
Progress = Callable[[str, int, int], None]
KIND = "synthetic log"


def synthesize(
    job: Job, out: str | Path, format: str = "parquet", progress: Progress = lambda *_: None
) -> dict[str, Any]:
    """Writes the events and items of the job's first synthetic source; the part of a job file that reads them.

    Raises UsageError if the job has no such source or the format is unknown, StorageError where ``out`` cannot be
    written or holds something else.
    """
    if format not in get_args(Format):
        raise UsageError(f"--format {format} is unknown", "csv or parquet", "Choose one of the two.")
    config = _synthetic(job)
    source = config.open()
    folder = Storage(out)
    with _replacing(folder, "events", source) as place:
        _write_events(source, place.path, format, progress)
    items, item_file = source.items(), ""
    if items is not None:
        item_file = f"items.{_item_format(items, format)}"
        with _replacing(folder, "items", source) as place, _writer(place.path / item_file, items.table.schema) as write:
            write(items.table)
    section: dict[str, Any] = {"events": [_events_section(config, source, f"{out}/events/*.{format}", format)]}
    if items is not None:
        section["items"] = _items_section(items, f"{out}/items/{item_file}")
    return {"data": section}


def _synthetic(job: Job) -> SourceConfig:
    for config in job.data.events:
        if config.source == "synthetic":
            return config
    names = ", ".join(config.source for config in job.data.events)
    raise UsageError(
        f"Job {job.name} has no synthetic source: its data.events are {names}",
        "an entry with source: synthetic",
        "Take a job with one, such as jobs/quickstart.yaml.",
    )


@contextmanager
def _replacing(folder: Storage, name: str, source: Source) -> Iterator[Storage]:
    """A folder to fill, which takes the place of the one that an earlier run made. Raises StorageError."""
    if (folder / name).list() and (folder / name).manifest(KIND) is None:
        raise StorageError(
            f"{folder}/{name} holds files that are not a {KIND}",
            "a new folder, or one that this command made",
            "Choose another one with --out.",
        )
    with folder.replacing(name) as staging:
        yield staging
        staging.write_manifest(KIND, made_from=source.identity())


def _write_events(source: Source, folder: Path, format: str, progress: Progress) -> None:
    """One file for each read task of the source, with its rows in their order."""
    schema = _event_file_schema(source)
    tasks = source.read_tasks()
    for number, task in enumerate(tasks):
        with _writer(folder / f"part-{number:05d}.{format}", schema) as write:
            for batch in source.read(task):
                table = batch.events.rename_columns({"time_ms": TIMESTAMP})
                write(table.select(schema.names).cast(schema))
        progress("parts of the log", number + 1, len(tasks))


def _event_file_schema(source: Source) -> pa.Schema:
    """Columns of the files; their times are milliseconds since 1970."""
    fields = [(USER_ID, pa.string()), (ITEM_ID, pa.string()), (EVENT, pa.string())]
    if source.has_clock:
        fields.append((TIMESTAMP, pa.int64()))
    return pa.schema([*fields, (QUERY, pa.string()), (VALUE, pa.float32()), (QUANTITY, pa.float32())])


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """A function that appends a table to a new file, CSV or Parquet by its name. Raises StorageError."""
    try:
        if path.suffix == ".csv":
            writer = csv.CSVWriter(path, schema)
        else:
            writer = pq.ParquetWriter(path, schema, compression="zstd")
        with writer:
            yield writer.write_table
    except OSError as error:
        raise StorageError(
            f"{path.name} cannot be written: {error}", "", "Free some space, or choose another folder with --out."
        ) from error


def _item_format(items: FeatureTable, format: str) -> str:
    """``format``, or Parquet where a feature has several values an item, which a CSV cannot hold."""
    return "parquet" if any(pa.types.is_nested(field.type) for field in items.table.schema) else format


def _events_section(config: SourceConfig, source: Source, path: str, format: str) -> dict[str, Any]:
    section: dict[str, Any] = {
        "source": "files",
        "path": path,
        "format": format,
        "columns": {name: name for name in _event_file_schema(source).names},
        "event_types": {name: name for name in config.event_names()},
    }
    if source.has_clock:
        section["timestamp_unit"] = "ms"
    return section


def _items_section(items: FeatureTable, path: str) -> dict[str, Any]:
    return {
        "path": path,
        "columns": {(ITEM_ID if name == items.key else name): name for name in items.table.column_names},
        "numeric": list(items.numeric),
        "text": list(items.text),
    }


def as_yaml(value: dict[str, Any]) -> str:
    """The part of a job file as text."""
    yaml = YAML()
    yaml.default_flow_style = None  # innermost mappings and lists on one line
    yaml.width = 1000  # a wrapped line would end in a space
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()
