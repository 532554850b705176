"""Feature tables: the files of ``data.items`` and ``data.users`` → ``FeatureTable``.

They are small beside a log and are read whole. A feature that is no number or text is a category; several of them
in one Parquet column are a list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from distft.data.sources.base import FeatureTable
from distft.data.sources.files.source import check_columns
from distft.data.sources.inputs import Input, find_inputs
from distft.data.sources.records import (
    CsvDialect,
    Records,
    csv_header,
    parquet_groups,
    parquet_names,
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
    parts = []
    for source in find_inputs(config.path):
        for records in _records(source, config):
            columns = {ours: _plain(records.columns[theirs], config) for ours, theirs in config.columns.items()}
            parts.append(pl.DataFrame(columns))
    if not parts:
        raise DataError(f"{config.path} holds no records", "one record an item or user", "Check the file.")
    frame = pl.concat(parts)
    frame = frame.with_columns(_key(frame[key])).drop_nulls(key)
    numeric = tuple(name for name in config.numeric if name in config.columns)
    frame = frame.with_columns(pl.col(numeric).cast(pl.Float64, strict=False)) if numeric else frame
    categories = [name for name in frame.columns if name not in numeric and not frame[name].dtype.is_nested()]
    frame = frame.with_columns(pl.col(categories).cast(pl.String))
    text = tuple(name for name in config.text if name in config.columns)
    return FeatureTable(frame.to_arrow().cast(_small_types(frame.to_arrow().schema)), key, numeric, text)


def _records(source: Input, config: Features) -> list[Records]:
    kind = source.format() if config.format == "auto" else config.format
    names = list(config.columns.values())
    if kind == "jsonl":
        return list(read_jsonl(source, names))
    if kind == "parquet":
        check_columns(source, parquet_names(source), config.columns)
        return list(read_parquet(source, names, range(len(parquet_groups(source))), 0))
    separator = config.separator or ("\t" if ".tsv" in source.suffixes else ",")
    dialect = CsvDialect(separator, encoding=config.encoding)
    check_columns(source, csv_header(source, dialect), config.columns)
    return list(read_csv(source, dialect))


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


def _key(ids: pl.Series) -> pl.Series:
    """Ids as a log's are read: without the ".0" of a float column."""
    if ids.dtype.is_float():
        whole = ids.cast(pl.Int64, strict=False)
        return whole.cast(pl.String).alias(ids.name)
    text = ids.cast(pl.String)
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
