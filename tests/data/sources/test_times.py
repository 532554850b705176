from __future__ import annotations

from datetime import date, datetime, timezone

import polars as pl
import pytest

from distft.data.sources.times import Clock

MOMENT = datetime(2020, 9, 13, 12, 26, 40, 250_000, tzinfo=timezone.utc)
MS = 1_600_000_000_250


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("2020-09-13 12:26:40", MS - 250),
        ("2020-09-13T12:26:40.250", MS),
        ("2020-09-13T12:26:40.25Z", MS),
        ("2020-09-13 14:26:40.25+02:00", MS),
        ("2020-09-13T10:26:40-0200", MS - 250),
        ("2020-09-13 12:26", MS - 40_250),
        ("2020-09-13", 1_599_955_200_000),
        ("2020-09-13T12:26Z", MS - 40_250),
        ("2020-09-13 14:26+02:00", MS - 40_250),
        ("2020/09/13 12:26:40", MS - 250),
        ("2020/09/13 12:26", MS - 40_250),
        ("2020/09/13", 1_599_955_200_000),
        ("20200913", 1_599_955_200_000),
        ("20200913.0", 1_599_955_200_000),
        ("1600000000", MS - 250),
        ("1600000000.25", MS),
        ("1600000000250", MS),
        ("1600000000250000", MS),
        ("1600000000250999999", MS),
        ("13.09.2020", None),
        ("", None),
        ("1969-12-31", None),
        ("2100-01-01", None),
        ("9" * 30, None),
    ],
)
def test_auto_reads_every_form(text: str, time_ms: int | None) -> None:
    assert Clock("auto").read(pl.Series([text])).to_list() == [time_ms]


def test_the_first_batch_decides_for_the_file() -> None:
    clock = Clock("auto")
    assert clock.read(pl.Series(["1600000000", "15"])).to_list() == [1_600_000_000_000, None]
    assert clock.read(pl.Series(["1600000000250", "2020-09-13", "1600000001"])).to_list() == [
        None,
        None,
        1_600_000_001_000,
    ]


def test_small_numbers_are_seconds_where_all_are_small() -> None:
    assert Clock("auto").read(pl.Series(["1", "2", "3"])).to_list() == [1000, 2000, 3000]


def test_numbers_that_are_dates_are_dates_where_most_are() -> None:
    clock = Clock("auto")
    assert clock.read(pl.Series([20200913, 20200931, 20200913])).to_list() == [
        1_599_955_200_000,
        None,
        1_599_955_200_000,
    ]
    assert clock.read(pl.Series([1_600_000_000])).to_list() == [None]
    assert Clock("auto").read(pl.Series([20200914, 20200957, 20200988])).to_list()[1] == 20_200_957_000
    assert Clock("s").read(pl.Series([20200913])).to_list() == [20_200_913_000]


@pytest.mark.parametrize(("unit", "number"), [("s", 15), ("ms", 15_000), ("us", 15_000_000), ("ns", 15_000_000_000)])
def test_a_unit_that_is_given_holds(unit: str, number: int) -> None:
    for column in (pl.Series([number]), pl.Series([str(number)]), pl.Series([float(number)])):
        assert Clock(unit).read(column).to_list() == [15_000]


def test_typed_columns() -> None:
    assert Clock("auto").read(pl.Series([MOMENT, None])).to_list() == [MS, None]
    assert Clock("auto").read(pl.Series([MOMENT.replace(tzinfo=None)])).to_list() == [MS]
    assert Clock("auto").read(pl.Series([date(2020, 9, 13)])).to_list() == [1_599_955_200_000]
    assert Clock("auto").read(pl.Series([1_600_000_000_250])).to_list() == [MS]
    assert Clock("auto").read(pl.Series([None, None], dtype=pl.String)).to_list() == [None, None]
