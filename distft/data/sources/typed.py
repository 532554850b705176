"""Columns of a log → typed events, and the rows that are unusable with the first reason why.

Enters: ``Records`` in the log's own words. Leaves: an ``EventBatch``. Works on whole columns; a value that does not
convert makes its row a reject, never its block.

Two things are decided by the first records of each file and hold for the rest of it: the unit of its timestamps,
and whether a column of ids was written as floats (17850.0, as pandas writes integers beside missing values): such
ids lose their ".0". Records that disagree are rejected or kept as they are; nothing flips in the middle of a file.

Surprising choice: a cancellation (negative quantity) comes out twice: among the rejected, for the account, and
among the events, because it undoes an earlier purchase.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from distft.data.sources.base import EventBatch, event_schema
from distft.data.sources.records import UNDECODABLE, Records, rejected_table
from distft.data.sources.times import Clock
from distft.schema import EVENT, ITEM_ID, ITEMLESS_EVENTS, QUANTITY, QUERY, TIMESTAMP, USER_ID, VALUE

if TYPE_CHECKING:
    from numpy.typing import NDArray

CANCELLATION = "cancellation"
MISSING_USER = "missing user_id"
MISSING_ITEM = "missing item_id"
UNKNOWN_EVENT = "unknown event"
BAD_TIMESTAMP = "bad timestamp"
NUL = "NUL byte"

MAX_NUMBER = 1e15
"""No price, rating or quantity is larger, whatever the currency."""

_FLOAT_ID = r"^(-?\d+)\.0+$"


@dataclass(frozen=True)
class Mapping:
    """Which column is what. ``event``: every row is this one; else ``event_types`` translates the event column."""

    columns: dict[str, str]
    event_names: tuple[str, ...]
    event: str | None = None
    event_types: dict[str, str] = field(default_factory=dict)
    timestamp_unit: str = "auto"


class Typing:
    """Types the records of one file, batch after batch."""

    def __init__(self, mapping: Mapping, file: str) -> None:
        self._mapping, self._file = mapping, file
        self._clock = Clock(mapping.timestamp_unit)
        self._float_ids: dict[str, bool] = {}

    def batch(self, records: Records) -> EventBatch:
        """The records as events and rejects."""
        reasons = _Reasons(len(records.row))
        texts = {ours: self._column(records, ours, reasons) for ours in self._mapping.columns}
        user_id = self._ids(texts, USER_ID, len(records.row))
        reasons.add(MISSING_USER, user_id.is_null())
        codes = self._events(texts, len(records.row))
        reasons.add(UNKNOWN_EVENT, codes.is_null())
        item_id = self._ids(texts, ITEM_ID, len(records.row))
        itemless = [code for code, name in enumerate(self._mapping.event_names) if name in ITEMLESS_EVENTS]
        reasons.add(MISSING_ITEM, item_id.is_null() & ~codes.is_in(itemless).fill_null(False))
        time_ms = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(records.row))
        if TIMESTAMP in texts:
            time_ms = self._clock.read(texts[TIMESTAMP])
            reasons.add(BAD_TIMESTAMP, time_ms.is_null())
        value, quantity = (_numbers(texts, name, reasons, len(records.row)) for name in (VALUE, QUANTITY))
        cancelled = (quantity < 0).fill_null(False)
        cancelled &= pl.Series(reasons.clear)
        query = texts.get(QUERY, pl.Series([None], dtype=pl.String).new_from_index(0, len(records.row)))
        frame = {USER_ID: user_id, ITEM_ID: item_id, "time_ms": time_ms, QUERY: query, VALUE: value, QUANTITY: quantity}
        events = self._table(records.row, codes, frame, reasons.clear)
        reasons.add(CANCELLATION, cancelled)
        return EventBatch(events, self._rejected(records, reasons, user_id))

    def _column(self, records: Records, ours: str, reasons: _Reasons) -> pl.Series:
        """A mapped column; bytes become text, "" becomes null."""
        column = records.columns[self._mapping.columns[ours]].combine_chunks()
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            column, broken = decoded(column)
            if broken is not None:
                reasons.add(UNDECODABLE, pl.Series(broken))
        series = pl.Series(pl.from_arrow(column))
        if series.dtype in (pl.Categorical, pl.Enum):
            series = series.cast(pl.String)
        elif series.dtype == pl.List:  # the words of a query
            series = series.cast(pl.List(pl.String)).list.join(" ", ignore_nulls=True)
        if series.dtype != pl.String:
            return series
        reasons.add(NUL, series.str.contains("\0", literal=True))
        return series.set(series == "", None)

    def _ids(self, texts: dict[str, pl.Series], ours: str, size: int) -> pl.Series:
        """Ids as text; those of a float column without their ".0"."""
        if ours not in texts:
            return pl.Series([None], dtype=pl.String).new_from_index(0, size)
        series = texts[ours]
        if series.dtype != pl.String:
            return id_texts(series)
        if ours not in self._float_ids and (looks := look_like_floats(series)) is not None:
            self._float_ids[ours] = looks
        return without_zeros(series) if self._float_ids.get(ours, False) else series

    def _events(self, texts: dict[str, pl.Series], size: int) -> pl.Series:
        """Place of each row's event in ``event_names``; null where it is none of them."""
        if self._mapping.event is not None:
            return pl.Series([self._mapping.event_names.index(self._mapping.event)], dtype=pl.Int8).new_from_index(
                0, size
            )
        names = self._mapping.event_types
        codes = {raw: self._mapping.event_names.index(name) for raw, name in names.items()}
        column = texts[EVENT]
        text = self._ids({EVENT: column}, EVENT, size)
        return text.replace_strict(list(codes), list(codes.values()), default=None, return_dtype=pl.Int8)

    def _table(
        self, row: NDArray[np.int64], codes: pl.Series, frame: dict[str, pl.Series], clear: NDArray[np.bool_]
    ) -> pa.Table:
        mask = pl.Series(clear)
        names = pa.array(self._mapping.event_names, pa.string())
        code_array = pa.array(codes.filter(mask).to_numpy(), pa.int8())
        arrays = {"row": pa.array(row[clear]), EVENT: pa.DictionaryArray.from_arrays(code_array, names)}
        arrays |= {name: _arrow(series.filter(mask)) for name, series in frame.items()}
        schema = event_schema()
        return pa.Table.from_arrays([arrays[field.name].cast(field.type) for field in schema], schema=schema)

    def _rejected(self, records: Records, reasons: _Reasons, user_id: pl.Series) -> pa.Table:
        places = np.flatnonzero(reasons.code >= 0)
        found = [] if not len(places) else zip(
            records.row[places].tolist(),
            [reasons.names[code] for code in reasons.code[places].tolist()],
            records.raw(places),
            user_id.gather(places).to_list(),
            strict=True,
        )  # fmt: skip
        rows = sorted([*((*one, None) for one in records.rejected), *found], key=lambda one: one[0])
        return rejected_table(self._file, rows)


def id_texts(series: pl.Series) -> pl.Series:
    """Ids of any type as text: the number 5, the float 5.0 and the decimal 5.00 are the id "5", as in a text column."""
    if series.dtype.is_float():
        series = series.fill_nan(None)
        whole = series.cast(pl.Int64, strict=False)
        is_whole = (whole.cast(series.dtype) == series).fill_null(False)
        return whole.cast(pl.String).zip_with(is_whole, series.cast(pl.String))
    text = series.cast(pl.String)
    return without_zeros(text) if series.dtype.is_decimal() else text


def look_like_floats(series: pl.Series) -> bool | None:
    """True if all texts are whole numbers with a fraction of zeros; None if there are no texts."""
    looks = series.drop_nulls().str.contains(_FLOAT_ID)
    return bool(looks.all()) if len(looks) else None


def without_zeros(series: pl.Series) -> pl.Series:
    """Texts without the ".0" of whole numbers."""
    return series.str.replace(_FLOAT_ID, "$1")


class _Reasons:
    """The first reason to reject each row; -1 where there is none."""

    def __init__(self, size: int) -> None:
        self.names: list[str] = []
        self.code = np.full(size, -1, np.int16)

    @property
    def clear(self) -> NDArray[np.bool_]:
        return self.code < 0

    def add(self, name: str, mask: pl.Series) -> None:
        """Rows where ``mask``, as far as they have no reason yet, get this one."""
        self.names.append(name)
        self.code[mask.fill_null(False).to_numpy() & self.clear] = len(self.names) - 1


def _arrow(series: pl.Series) -> pa.Array:
    array = series.to_arrow()
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def decoded(column: pa.Array) -> tuple[pa.Array, NDArray[np.bool_] | None]:
    """Bytes as text, and where they are not UTF-8 (None: nowhere)."""
    try:
        return column.cast(pa.string()), None
    except pa.ArrowInvalid:
        texts = [None if value is None else _text(value) for value in column.to_pylist()]
        broken = pc.and_(pc.is_null(pa.array(texts, pa.string())), pc.is_valid(column))
        return pa.array(texts, pa.string()), broken.to_numpy(zero_copy_only=False)


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _numbers(texts: dict[str, pl.Series], ours: str, reasons: _Reasons, size: int) -> pl.Series:
    """A column of numbers, null where it is empty; what is no finite number rejects its row."""
    if ours not in texts:
        return pl.Series([None], dtype=pl.Float32).new_from_index(0, size)
    series = texts[ours]
    if series.dtype == pl.String:
        series = series.str.strip_chars()
    numbers = series.cast(pl.Float64, strict=False).cast(pl.Float32)
    missing = series.is_null() if not series.dtype.is_float() else series.is_null() | series.is_nan()
    usable = (numbers.is_finite() & (numbers.abs() <= MAX_NUMBER)).fill_null(False)
    reasons.add(f"bad {ours}", ~missing & ~usable)
    return numbers.set(missing, None)
