"""Feature tables: the files of ``data.items`` and ``data.users`` → ``FeatureTable``.

They are small beside a log and are read whole. A feature that is no number or text is a category; several of them
in one Parquet column are a list. A record that cannot be used is kept with its reason. Of several records of one id
the first counts and the others are no mistake: a log, read as a table, says something of an item in every row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from distft.data.numbers import LARGEST
from distft.data.sources.base import FeatureTable, rejected_schema
from distft.data.sources.columns import CATEGORY, ID, NUMBER, TEXT, Kind, check_columns, check_keys, check_types
from distft.data.sources.inputs import Input, find_inputs
from distft.data.sources.records import (
    UNDECODABLE,
    CsvDialect,
    Records,
    csv_header,
    parquet_groups,
    parquet_schema,
    read_csv,
    read_jsonl,
    read_parquet,
    rejected_table,
)
from distft.data.sources.typed import decoded, id_texts, look_like_floats, without_zeros
from distft.errors import DataError
from distft.schema import USER_ID

if TYPE_CHECKING:
    from distft.sections.features import Features


@dataclass(frozen=True, eq=False)
class _Part:
    """Some records of one file: ``frame`` by our names, and which of them are not text in the table's encoding."""

    file: str
    records: Records
    frame: pl.DataFrame
    broken: np.ndarray[tuple[int], np.dtype[np.bool_]]


def read_features(config: Features, key: str, max_rejected_share: float) -> FeatureTable:
    """The table that a job's ``data.items`` (key item_id) or ``data.users`` (key user_id) names. Raises DataError."""
    if key not in config.columns:
        raise DataError(f"The feature table {config.path} has no {key}", f"{key} among its columns", "Map it.")
    parts = [
        _part(source.name, records, config) for source in find_inputs(config.path)
        for records in _records(source, config, key)
    ]  # fmt: skip
    keys = _keys([part.frame[key] for part in parts])
    reasons = _reasons(parts, keys, key)
    users = keys if key == USER_ID else pl.Series([None], dtype=pl.String).new_from_index(0, len(keys))
    rejected = _rejected(parts, reasons, users)
    _check_rejected(rejected, reasons.null_count(), config, key, max_rejected_share)
    numeric = tuple(name for name in config.numeric if name in config.columns)
    text = tuple(name for name in config.text if name in config.columns)
    frame = _together([part.frame.with_columns(pl.col(key).cast(pl.String)) for part in parts], numeric, config)
    kept = _first_of_id(keys, usable=reasons.is_null())
    table = frame.with_columns(keys.alias(key)).filter(kept).to_arrow()
    bad = {name: _num_bad([part.frame[name] for part in parts], kept) for name in numeric}
    repeated = reasons.null_count() - len(table)
    return FeatureTable(table.cast(_small_types(table.schema)), key, numeric, text, rejected, repeated, bad)


def _part(file: str, records: Records, config: Features) -> _Part:
    broken = np.zeros(len(records.row), np.bool_)
    columns = {}
    for ours, theirs in config.columns.items():
        columns[ours], some = _plain(records.columns[theirs])
        broken |= some
    return _Part(file, records, pl.DataFrame(columns), broken)


def _keys(columns: Sequence[pl.Series]) -> pl.Series:
    """Ids as a log's are read: without the ".0" of a column that was written as floats."""
    texts = pl.concat([id_texts(column) for column in columns]) if columns else pl.Series([], dtype=pl.String)
    return without_zeros(texts) if look_like_floats(texts) else texts


def _reasons(parts: Sequence[_Part], keys: pl.Series, key: str) -> pl.Series:
    """Why each record cannot be used; null where it can."""
    broken = np.concatenate([np.zeros(0, np.bool_), *(part.broken for part in parts)])
    frame = pl.DataFrame({"broken": pl.Series(broken, dtype=pl.Boolean), "missing": keys.is_null()})
    reason = pl.when("broken").then(pl.lit(UNDECODABLE)).when("missing").then(pl.lit(f"missing {key}"))
    return frame.select(reason).to_series()


def _first_of_id(keys: pl.Series, usable: pl.Series) -> pl.Series:
    """True for the first usable record of each id."""
    place = pl.arange(len(keys), eager=True).set(usable, -1)  # so that what is not usable equals nothing
    return (
        usable & pl.DataFrame({"key": keys, "place": place}).select(pl.struct(pl.all()).is_first_distinct()).to_series()
    )


def _rejected(parts: Sequence[_Part], reasons: pl.Series, users: pl.Series) -> pa.Table:
    tables = [rejected_schema().empty_table()]
    start = 0
    for part in parts:
        mine, known = (one.slice(start, len(part.frame)) for one in (reasons, users))
        start += len(part.frame)
        places = mine.is_not_null().arg_true().to_numpy().astype(np.int64)
        texts = part.records.raw(places) if len(places) else []
        rows = part.records.row[places].tolist()
        found = zip(rows, mine.drop_nulls().to_list(), texts, known.gather(places).to_list(), strict=True)
        unread = ((*one, None) for one in part.records.rejected)
        tables.append(rejected_table(part.file, sorted([*unread, *found], key=lambda one: one[0])))
    return pa.concat_tables(tables)


def _check_rejected(rejected: pa.Table, num_used: int, config: Features, key: str, max_share: float) -> None:
    """Raises DataError if there are no records, or too many that are unusable."""
    num_rows = num_used + len(rejected)
    if not num_rows:
        raise DataError(f"{config.path} holds no records", "one record an item or user", "Check the file.")
    if num_used and len(rejected) <= max_share * num_rows:
        return
    (reason, count), *_ = sorted(Counter(rejected["reason"].to_pylist()).items(), key=lambda one: (-one[1], one[0]))
    example = rejected.filter(pc.equal(rejected["reason"], reason)).slice(0, 1).to_pylist()[0]
    what = f"{len(rejected):,} of the {num_rows:,} records of {config.path} are unusable, most of them ({count:,}) for "
    what += f"'{reason}': {example['file']}:{example['row']}: {example['raw'][:200]}"
    remedy = "Check its separator and quotes, or raise data.clean.max_rejected_share."
    if reason == UNDECODABLE:
        remedy = f"Set its encoding, for instance latin-1: it is not text in {config.encoding}."
    elif reason.startswith("missing"):
        remedy = f"Map another column than '{config.columns[key]}', or raise data.clean.max_rejected_share."
    raise DataError(what, f"at most {max_share:.1%}", remedy)


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
                *(_numbers(part[name]) for name in numeric),
                pl.col(texts).cast(pl.String),
                pl.col(lists).cast(pl.List(pl.String)),
            )
        )
    if any(part.schema != typed[0].schema for part in typed):
        what = f"A column is a list in some files of {config.path} and none in others"
        raise DataError(what, "one type in all files", "Convert the column.")
    return pl.concat(typed)


def _numbers(column: pl.Series) -> pl.Series:
    """Numbers, null where there is none that a shop can mean."""
    text = column.str.strip_chars() if column.dtype == pl.String else column
    numbers = text.cast(pl.Float64, strict=False)
    return numbers.set(~(numbers.abs() <= LARGEST).fill_null(False), None)


def _num_bad(columns: Sequence[pl.Series], kept: pl.Series) -> int:
    """Values of the kept records that are there and no numbers."""
    bad = (
        pl.concat(
            [
                column.fill_nan(None).is_not_null() if column.dtype.is_float() else column.is_not_null()
                for column in columns
            ]
        )
        & pl.concat([_numbers(column) for column in columns]).is_null()
    )
    return int((bad & kept).sum())


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


def _plain(column: pa.ChunkedArray) -> tuple[pl.Series, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Bytes as text (of the table's encoding, which the reader has turned into UTF-8), "" as null; where not UTF-8."""
    broken = None
    array = column.combine_chunks()
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        array, broken = decoded(array)
    series = pl.Series(pl.from_arrow(array))
    series = series.set(series == "", None) if series.dtype == pl.String else series
    return series, np.zeros(len(series), np.bool_) if broken is None else broken


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
