"""Labels of target events, and what a history may show of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distft.data.collate import Side, history_batch
from distft.data.encode import Encoder, RawEvent
from distft.data.parquet import read_table
from distft.data.ragged import from_table
from distft.data.shards import TargetReader, load_histories
from distft.errors import DataError
from distft.schema import NEGATIVE, NO_LABEL, POSITIVE
from distft.storage import Storage
from tests.data import logs

BY_VALUE = {"target_events": ["purchase"], "label": {"value_at_least": 50}, "split": {"by": "random"}}
BY_EVENT = {"target_events": ["view"], "label": {"event": "purchase", "within_s": 3600}}


@pytest.fixture(scope="module")
def by_value(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, dict[str, Any]]:
    return prepared(tmp_path_factory.mktemp("value"), logs.rows(), **BY_VALUE)


def prepared(folder: Path, rows: Any, **data: Any) -> tuple[Storage, dict[str, Any]]:
    logs.write_csv(folder / "log.csv", rows)
    return logs.prepare_here(logs.job(folder, **data), folder / "run")


def test_a_value_makes_the_label_of_targets_and_stays_with_other_events(by_value: Any) -> None:
    dataset, stats = by_value
    rows = load_histories(dataset, "train")
    targets = rows.event == Encoder.load(dataset / "encoder").event_code("purchase")
    assert set(rows.value[targets].tolist()) == {0.0, 1.0}
    assert set(rows.value[~targets].tolist()) > {0.5, 99.5}
    assert stats["splits"]["train"]["positives"] == int(rows.value[targets].sum())
    found = np.concatenate([targets.value for _, targets in TargetReader(dataset, "test")])
    assert set(found.tolist()) == {0.0, 1.0}
    assert stats["splits"]["test"]["positives"] == int(found.sum())


def test_a_history_shows_the_labels_that_values_tell(by_value: Any) -> None:
    dataset, _ = by_value
    encoder = Encoder.load(dataset / "encoder")
    rows = load_histories(dataset, "train")
    batch = history_batch(rows, 1000, True, Side.of(encoder, dataset))
    is_target = batch.event_BL == encoder.event_code("purchase")
    assert set(batch.label_BL[is_target].tolist()) == {NEGATIVE, POSITIVE}
    assert set(batch.label_BL[~is_target].tolist()) == {NO_LABEL}
    assert encoder.catalog().has_labels


def test_what_a_request_says_of_values_gives_the_same_labels(by_value: Any) -> None:
    dataset, _ = by_value
    encoder = Encoder.load(dataset / "encoder")
    rows = load_histories(dataset, "train")
    row = int(rows.lengths.argmax())
    raw = encoder.decode(rows, row, unknown="?")
    values = encoder.label_values(rows, row)
    events = [
        RawEvent(item, name, time, query, value)
        for item, name, time, query, value in zip(
            raw.item_ids, raw.events, raw.time_ms, raw.queries, values, strict=True
        )
    ]
    side = Side.of(encoder, None)
    labels = history_batch(encoder.encode_events(events), 1000, True, side).label_BL[0]
    from_dataset = history_batch(rows, 1000, True, side).label_BL[row, : len(events)]
    assert labels.tolist() == from_dataset.tolist()
    assert set(labels.tolist()) == {NO_LABEL, NEGATIVE, POSITIVE}
    unsaid = encoder.encode_events([RawEvent("i1", "purchase")])
    assert history_batch(unsaid, 9, True, side).label_BL.tolist() == [[NO_LABEL]]


def test_a_following_event_makes_the_label_but_no_history_shows_it(tmp_path: Path) -> None:
    dataset, _ = prepared(tmp_path, logs.rows(), **BY_EVENT)
    encoder = Encoder.load(dataset / "encoder")
    view, purchase = encoder.event_code("view"), encoder.event_code("purchase")
    rows = from_table(read_table(dataset, "train/00000.parquet"))
    positives = 0
    for start, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        for place in range(start, end):
            if rows.event[place] != view or rows.item_row[place] < 2:
                continue
            naive = any(
                rows.event[later] == purchase
                and rows.item_row[later] == rows.item_row[place]
                and rows.time_ms[later] - rows.time_ms[place] <= 3_600_000
                for later in range(place + 1, end)
            )
            assert not naive or rows.value[place] == 1  # what comes in the validation part counts, too
            positives += naive
    assert positives > 1
    assert not encoder.catalog().has_labels
    assert not history_batch(rows, 1000, True, Side.of(encoder, dataset)).label_BL.any()


def test_targets_without_a_value_are_filtered_and_counted(tmp_path: Path) -> None:
    records = logs.rows()
    for row in records[50:90]:
        if len(row) == 7 and row[2] == "buy":
            row[5] = ""
    _, stats = prepared(tmp_path, records, **BY_VALUE)
    assert stats["filtered"]["by_reason"]["no_value"] > 3
    assert stats["rows_in"] == stats["kept"] + stats["rejected"]["total"] + stats["filtered"]["total"]


def test_one_label_for_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all of the [0-9,]+ targets are positive"):
        prepared(tmp_path, logs.rows(), **BY_VALUE | {"label": {"value_at_least": -1}})
