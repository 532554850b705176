"""Feature tables: the files of ``data.items`` and ``data.users`` → ``FeatureTable``.

They are small beside a log and are read whole. A feature that is no number or text is a category; several of them
in one Parquet column are a list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from distft.data.sources.base import FeatureTable
from distft.data.sources.columns import CATEGORY, ID, NUMBER, TEXT, Kind, check_columns, check_keys, check_types
from distft.data.sources.inputs import Input, find_inputs
from distft.data.sources.records import (
    CsvDialect,
    Records,
    csv_header,
    parquet_groups,
    parquet_schema,
    read_csv,
    read_jsonl,
    read_parquet,
)
from distft.errors import DataError

if TYPE_CHECKING:
    from distft.job import Features

_FLOAT_ID = r"^(-?\d+)\.0+$"


def read_features(config: Features, key: str) -> FeatureTable:
    """The table that a job's ``data.items`` (key item_id) or ``data.users`` (key user_id) names. Raises DataError."""
    if key not in config.columns:
        raise DataError(f"The feature table {config.path} has no {key}", f"{key} among its columns", "Map it.")
    numeric = tuple(name for name in config.numeric if name in config.columns)
    parts = []
    rejected = []
    for source in find_inputs(config.path):
        for records in _records(source, config, key):
            rejected += records.rejected
            columns = {ours: _plain(records.columns[theirs], config) for ours, theirs in config.columns.items()}
            parts.append(pl.DataFrame(columns))
    if len(rejected) > sum(map(len, parts)):
        what = f"{len(rejected):,} records of {config.path} are unusable, more than are not"
        row, reason, raw = rejected[0]
        raise DataError(f"{what}: record {row:,} for '{reason}': {raw[:200]}", "", "Check its separator and quotes.")
    if not sum(map(len, parts)):
        raise DataError(f"{config.path} holds no records", "one record an item or user", "Check the file.")
    frame = _together([part.with_columns(_key_text(part[key])) for part in parts], numeric, config)
    frame = frame.with_columns(_key(frame[key])).drop_nulls(key)
    if not len(frame):
        raise DataError(
            f"No record of {config.path} has a value in '{config.columns[key]}' (for {key})", "an id in each"
        )
    text = tuple(name for name in config.text if name in config.columns)
    return FeatureTable(frame.to_arrow().cast(_small_types(frame.to_arrow().schema)), key, numeric, text)


def _together(parts: list[pl.DataFrame], numeric: tuple[str, ...], config: Features) -> pl.DataFrame:
    """The records of all files, with numbers as float64 and everything else as text or lists of it."""
    for name in numeric:
        _check_numbers(name, [part[name] for part in parts], config)
    typed = []
    for part in parts:
        lists = [name for name, kind in part.schema.items() if kind == pl.List]
        texts = [name for name in part.columns if name not in (*numeric, *lists)]
        typed.append(
            part.with_columns(
                pl.col(numeric).cast(pl.Float64, strict=False),
                pl.col(texts).cast(pl.String),
                pl.col(lists).cast(pl.List(pl.String)),
            )
        )
    if any(part.schema != typed[0].schema for part in typed):
        what = f"A column is a list in some files of {config.path} and none in others"
        raise DataError(what, "one type in all files", "Convert the column.")
    return pl.concat(typed)


def _check_numbers(name: str, columns: list[pl.Series], config: Features) -> None:
    """Raises DataError if values of a numeric feature are there, and none is a number."""
    there = [column.drop_nulls() for column in columns]
    if not any(map(len, there)) or any(column.cast(pl.Float64, strict=False).count() for column in there):
        return
    examples = [str(value) for column in there for value in column[:3].to_list()][:3]
    raise DataError(
        f"No value of '{name}' in {config.path} is a number, for instance: {', '.join(map(repr, examples))}",
        "numbers such as 1.5, without a currency or a thousands separator",
        "Convert the column; or take the feature out of 'numeric', and it is a category.",
    )


def _records(source: Input, config: Features, key: str) -> list[Records]:
    kind = source.format() if config.format == "auto" else config.format
    names = list(config.columns.values())
    if kind == "jsonl":
        check_keys(source, source.peek(), config.columns, (key,))
        return list(read_jsonl(source, names))
    if kind == "parquet":
        schema = parquet_schema(source)
        check_columns(source, tuple(schema.names), config.columns)
        check_types(source, schema, config.columns, _kinds(config, key))
        return list(read_parquet(source, names, range(len(parquet_groups(source))), 0))
    separator = config.separator or ("\t" if ".tsv" in source.suffixes else ",")
    dialect = CsvDialect(separator, config.header, encoding=config.encoding)
    check_columns(source, csv_header(source, dialect), config.columns)
    return list(read_csv(source, dialect))


def _kinds(config: Features, key: str) -> dict[str, Kind]:
    texts, numbers = dict.fromkeys(config.text, TEXT), dict.fromkeys(config.numeric, NUMBER)
    return {**dict.fromkeys(config.columns, CATEGORY), **texts, **numbers, key: ID}


def _plain(column: pa.ChunkedArray, config: Features) -> pl.Series:
    """Bytes as text (of the table's encoding, which the reader has turned into UTF-8); "" as null."""
    series = pl.Series(pl.from_arrow(column))
    if series.dtype == pl.Binary:
        try:
            series = series.cast(pl.String)
        except pl.exceptions.ComputeError as error:
            raise DataError(
                f"{config.path} is not text in {config.encoding}", "", "Set the encoding, for instance latin-1."
            ) from error
    return series.set(series == "", None) if series.dtype == pl.String else series


def _key_text(ids: pl.Series) -> pl.Series:
    """Ids as text; those of a float column without their ".0"."""
    if ids.dtype.is_float():
        ids = ids.cast(pl.Int64, strict=False)
    return ids.cast(pl.String)


def _key(text: pl.Series) -> pl.Series:
    """Ids as a log's are read: without the ".0" of a column that was written as floats."""
    looks = text.drop_nulls().str.contains(_FLOAT_ID)
    return text.str.replace(_FLOAT_ID, "$1") if len(looks) and looks.all() else text


def _small_types(schema: pa.Schema) -> pa.Schema:
    """Polars' large strings and lists as Arrow's usual ones."""
    fields = []
    for field in schema:
        kind = field.type
        if pa.types.is_large_list(kind):
            kind = pa.list_(pa.string())
        elif pa.types.is_large_string(kind):
            kind = pa.string()
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)
