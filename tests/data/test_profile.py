"""The numbers of the data report, against loops over the same events."""

from __future__ import annotations

import random
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from distft.data.profile import DAY_MS, Periods, cold, histories, popularity
from tests.data import logs, naive

START_MS = 1_600_000_000_000


@pytest.mark.parametrize(
    ("span_ms", "unit", "last"),
    [
        (30 * DAY_MS, "day", "2020-10-13"),
        (4 * DAY_MS - 1, "hour", "2020-09-17T12:00"),
        (7_200_000, "minute", "2020-09-13T14:26"),
        (0, "minute", "2020-09-13T12:26"),
    ],
)
def test_periods_fit_the_span_and_cover_it(span_ms: int, unit: str, last: str) -> None:
    periods = Periods.of_span(START_MS, START_MS + span_ms)
    assert periods.unit == unit
    assert periods.places(np.array([START_MS, START_MS + span_ms])).tolist() == [0, periods.count - 1]
    assert periods.label(periods.count - 1) == last


def test_history_lengths_are_those_of_the_users() -> None:
    rng = random.Random(1)
    lengths = [int(rng.paretovariate(0.8)) for _ in range(997)]
    found = histories(Counter(lengths))
    assert found["users"] == 997
    assert found["mean"] == round(sum(lengths) / 997, 2)
    assert found["quantiles"]["median"] == sorted(lengths)[498]
    assert found["quantiles"]["p90"] == sorted(lengths)[int(0.9 * 997)]
    assert (found["quantiles"]["min"], found["quantiles"]["max"]) == (min(lengths), max(lengths))
    assert sum(one["users"] for one in found["bins"]) == 997
    for one in found["bins"]:
        assert one["users"] == sum(one["from"] <= length <= one["to"] for length in lengths)
    assert [one["from"] for one in found["bins"][:7]] == [1, 2, 3, 4, 6, 8, 12]


def test_popularity_tells_how_few_items_have_how_much() -> None:
    found = popularity(np.array([0, 70, 20, 1, 1, 1, 1, 1, 1, 1, 3, 0], np.int64))
    assert (found["events"], found["items"], found["items_without"], found["items_of_half"]) == (100, 10, 2, 1)
    assert found["top_shares"] == {"1%": 0.7, "10%": 0.7, "50%": 0.95}
    assert found["curve"][:3] == [[1, 70], [2, 20], [3, 3]] and found["curve"][-1] == [10, 1]
    assert popularity(np.zeros(3, np.int64)) == {
        "events": 0, "items": 0, "items_without": 3, "items_of_half": 0, "top_shares": {}, "curve": [],
    }  # fmt: skip


def test_cold_targets_are_those_that_no_training_event_holds() -> None:
    items = pl.DataFrame({"train": [3, 0, 0, 1], "test": [5, 2, 0, 1], "valid": [0, 0, 0, 0]})
    assert cold(items, "test") == {"targets": 8, "cold_targets": 2, "share": 0.25, "items": 3, "cold_items": 1}
    assert cold(items, "valid") == {"targets": 0, "cold_targets": 0, "share": 0.0, "items": 0, "cold_items": 0}


def test_the_profile_of_a_dataset_is_what_loops_count(tmp_path: Path) -> None:
    logs.write_csv(tmp_path / "log.csv", logs.rows())
    _, stats = logs.prepare_here(logs.job(tmp_path), tmp_path / "run")
    truth = naive.by_time(logs.rows(), 3, 3, {"purchase"})
    profile = stats["profile"]
    trained = {event[1] for events in truth.train.values() for event in events}
    for split, rows in (("valid", truth.valid), ("test", truth.test)):
        targets = [target[1] for _, _, target in rows]
        assert profile["cold"][split]["targets"] == len(targets) == stats["splits"][split]["rows"]
        assert profile["cold"][split]["cold_targets"] == sum(item not in trained for item in targets)
        assert profile["cold"][split]["items"] == len(set(targets))
        times = [target[0] for _, _, target in rows]
        assert (stats["splits"][split]["first_ms"], stats["splits"][split]["last_ms"]) == (min(times), max(times))
    periods = profile["periods"]
    assert {name: sum(counts) for name, counts in periods["by_type"].items()} == stats["events_kept"]
    purchases = Counter[str]()
    for events in truth.train.values():
        for event in events:
            if event[2] == "purchase":
                purchases[f"{datetime.fromtimestamp(event[0] / 1000, tz=timezone.utc):%Y-%m-%d}"] += 1
    found = dict(zip(periods["starts"], periods["by_type"]["purchase"], strict=True))
    before = f"{datetime.fromtimestamp(stats['times']['valid_start_ms'] / 1000, tz=timezone.utc):%Y-%m-%d}"
    assert all(found[day] == count for day, count in purchases.items() if day < before)
    assert sum(day < before for day in purchases) > 3
    assert profile["histories"]["users"] == stats["users"]
    assert profile["popularity"]["events"] == sum(purchases.values())


@pytest.mark.parametrize("split", [{"by": "leave_one_out", "ties": "ordered"}, {"by": "random"}])
def test_the_number_of_partitions_changes_no_number(tmp_path: Path, split: dict[str, Any]) -> None:
    logs.write_csv(tmp_path / "log.csv", logs.rows())
    job = logs.job(tmp_path, split=split)
    one, many = (logs.prepare_here(job, tmp_path / str(count), count)[1] for count in (1, 7))
    assert one == many


def test_rejected_rows_have_examples_of_every_reason(tmp_path: Path) -> None:
    logs.write_csv(tmp_path / "log.csv", logs.rows())
    _, stats = logs.prepare_here(logs.job(tmp_path), tmp_path / "run")
    rejected = stats["rejected"]
    assert set(rejected["examples"]) == set(rejected["by_reason"])
    assert {name: len(found) for name, found in rejected["examples"].items()} == {
        name: min(count, 3) for name, count in rejected["by_reason"].items()
    }
    assert rejected["examples"]["bad timestamp"] == [f"{tmp_path}/log.csv:22: u1,i1,pv,yesterday,,1,1"]
