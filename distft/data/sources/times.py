"""Timestamps in the forms that logs use → milliseconds since 1970 in UTC.

A number is seconds, milliseconds, microseconds or nanoseconds; ``auto`` tells by the size of the first ones of a
file. Any other text is ISO 8601, with - or / in its date; without a zone it is UTC. Times before 1970 and from 2100
on are no times of a shop's log and come out as null.

Surprising choice: where most of the first numbers are dates such as 20240131 (from 1990 on), ``auto`` takes all for
dates: as seconds they would be a few days of 1970.
"""

from __future__ import annotations

import polars as pl

END_MS = 4_102_444_800_000  # 2100-01-01
UNIT_PER_MS = {"s": 1e-3, "ms": 1.0, "us": 1e3, "ns": 1e6}
_SIZES = ((1e8, "s"), (1e11, "s"), (1e14, "ms"), (1e17, "us"), (float("inf"), "ns"))
"""Upper bound of the numbers of each size, and their unit. The first, before 1973, is for logs of small numbers."""

FORMS = (
    "numbers (s, ms, us or ns since 1970), 2024-01-31, 2024/01/31 or 20240131, and 2024-01-31T12:00:00 with or without "
    "T, seconds, fraction and zone"
)
"""What is understood, for people."""

_LOCAL = (
    "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M",
    "%Y/%m/%d %H:%M:%S%.f", "%Y/%m/%d %H:%M", "%Y/%m/%d",
)  # fmt: skip
_ZONED = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M%#z", "%Y-%m-%d %H:%M%#z")
_UTC = r" ?(UTC|GMT)$"
_TEXT, _DATE = -1, -2
_FIRST_DATE, _LAST_DATE = 19900101, 20991231


class Clock:
    """Reads the timestamps of one file; what its first batch shows (numbers or text, which unit) holds for all."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._size: int | None = None  # of auto: which of _SIZES, or _TEXT or _DATE

    def read(self, column: pl.Series) -> pl.Series:
        """Milliseconds, int64; null where there is no time."""
        if column.dtype.is_temporal():
            times = column.cast(pl.Datetime("ms", getattr(column.dtype, "time_zone", None)))
            return _plausible(times.dt.epoch("ms"))
        unit = self._unit
        if unit == "auto":
            if self._size is None:
                self._size = _size(column)
            if self._size is None:
                return pl.Series([None], dtype=pl.Int64).new_from_index(0, len(column))
            if self._size == _DATE:
                return _plausible(_dates(_numbers(column)))
            unit = "iso" if self._size == _TEXT else _SIZES[self._size][1]
        if unit == "iso":
            return _plausible(_iso(column.cast(pl.String)))
        numbers = _numbers(column)
        if self._unit == "auto":
            numbers = numbers.set(~_of_size(numbers, self._size or 0), None)
        return _plausible(_milliseconds(column, numbers, unit))


def _numbers(column: pl.Series) -> pl.Series:
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    return column.cast(pl.Float64, strict=False)


def _milliseconds(column: pl.Series, numbers: pl.Series, unit: str) -> pl.Series:
    """Exact for whole numbers: a float cannot hold nanoseconds since 1970."""
    per_ms = UNIT_PER_MS[unit]
    in_range = (numbers / per_ms).is_between(0, END_MS).fill_null(False)
    numbers = numbers.set(~in_range, None)
    rounded = (numbers / per_ms).round().cast(pl.Int64)
    if column.dtype.is_float():
        return rounded
    text = column.str.strip_chars() if column.dtype == pl.String else column
    whole = text.cast(pl.Int64, strict=False).set(~in_range, None)
    exact = whole * 1000 if unit == "s" else whole // int(per_ms)
    return exact.zip_with(exact.is_not_null(), rounded)


def _size(column: pl.Series) -> int | None:
    """Which of ``_SIZES`` the middle one of the numbers has; _TEXT if most are none, _DATE if most are dates.

    None if there are no values.
    """
    present = column.drop_nulls()
    if not len(present):
        return None
    numbers = _numbers(present).drop_nulls()
    if 2 * len(numbers) < len(present):
        return _TEXT
    if 2 * _dates(numbers).count() > len(numbers):
        return _DATE
    middle = float(numbers.abs().sort()[len(numbers) // 2])
    return next(place for place, (bound, _) in enumerate(_SIZES) if middle < bound)


def _of_size(numbers: pl.Series, size: int) -> pl.Series:
    lower = _SIZES[size - 1][0] if size else 0.0
    return ((numbers >= lower) & (numbers < _SIZES[size][0])).fill_null(False)


def _dates(numbers: pl.Series) -> pl.Series:
    """Milliseconds of numbers such as 20240131; null for those that are no date."""
    whole = numbers.set(~numbers.is_between(_FIRST_DATE, _LAST_DATE).fill_null(False), None)
    days = whole.cast(pl.Int64).cast(pl.String).str.to_date("%Y%m%d", strict=False)
    return days.cast(pl.Datetime("ms")).dt.epoch("ms")


def _iso(column: pl.Series) -> pl.Series:
    text = column.str.strip_chars()
    result = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(text))
    for form in (*_LOCAL, *_ZONED):
        left = text.is_not_null() & result.is_null()
        if not left.any():
            break
        some = text.filter(left)
        if form in _ZONED:
            some = some.str.replace(_UTC, "Z")
        result = result.scatter(
            left.arg_true(), some.str.to_datetime(form, time_unit="ms", strict=False).dt.epoch("ms")
        )
    return result


def _plausible(times: pl.Series) -> pl.Series:
    return times.set(~times.is_between(0, END_MS, closed="left").fill_null(False), None)
