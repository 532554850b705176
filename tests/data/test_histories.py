"""``bundle/histories/``: what a user of a dataset did, in the words of the shop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distft.data import ragged
from distft.data.encode import UNKNOWN_WORD, Encoder, RawEvent
from distft.data.histories import read_histories, write_histories
from distft.data.parquet import write_table
from distft.schema import UNKNOWN, target_schema, train_schema
from distft.storage import Storage
from tests.serve.bundles import encoder as shop

VIEW, PURCHASE, SEARCH = "view", "purchase", "search"


def rows(encoder: Encoder, users: dict[str, list[RawEvent]]) -> list[pa.Array]:
    histories = ragged.concat([encoder.encode_events(events) for events in users.values()])
    return ragged.to_arrays(histories, pa.array(list(users)), np.zeros(len(users), np.int32))


def write(dataset: Storage, name: str, arrays: list[pa.Array], targets: list[NDArray[np.generic]] | None) -> None:
    schema = train_schema() if targets is None else target_schema()
    (dataset / name.split("/")[0]).make()
    extra = [] if targets is None else [pa.array(one) for one in targets]
    write_table(dataset, name, pa.table([*arrays, *extra], schema=schema))


def test_the_latest_split_tells_a_users_history_and_its_target_ends_it(tmp_path: Path) -> None:
    encoder, dataset = shop(), Storage(tmp_path / "dataset")
    early = [RawEvent("i1", VIEW, 1), RawEvent(None, SEARCH, 2, "red mug strange"), RawEvent("never seen", VIEW, 3)]
    write(dataset, "train/a.parquet", rows(encoder, {"both": early[:1], "train only": early}), None)
    late = [*early, RawEvent("i2", PURCHASE, 4)]
    row_of = {item: int(encoder.item_rows([item])[0]) for item in ("i2", "i3")}
    code = encoder.event_code(PURCHASE)
    targets = [
        np.array([row_of["i3"], row_of["i2"], UNKNOWN], np.int32),
        np.array([code] * 3, np.int8),
        np.array([9, 4, 5], np.int64),
        np.zeros(3, np.float32),
    ]
    three = rows(encoder, {"both": late, "both ": early, "cold": []})
    three[[field.name for field in train_schema()].index("user_id")] = pa.array(["both", "both", "cold"])
    write(dataset, "test/a.parquet", three, targets)
    dataset.write_manifest("dataset", {}, {})

    bundle = Storage(tmp_path / "bundle")
    assert write_histories(dataset, encoder, bundle, 100) == 3
    told = [RawEvent("i1", VIEW, 1), RawEvent(None, SEARCH, 2, f"red mug {UNKNOWN_WORD}")]
    told += [RawEvent(UNKNOWN_WORD, VIEW, 3)]
    assert dict(read_histories(bundle)) == {
        "both": [*told, RawEvent("i2", PURCHASE, 4), RawEvent("i3", PURCHASE, 9)],
        "cold": [RawEvent(UNKNOWN_WORD, PURCHASE, 5)],
        "train only": told,
    }
    for user, events in read_histories(bundle):
        again = encoder.encode_events(events)
        assert len(again.item_row) == len(events), user

    fewer = Storage(tmp_path / "fewer")
    write_histories(dataset, encoder, fewer, 2)
    assert dict(read_histories(fewer))["both"] == [RawEvent("i2", PURCHASE, 4), RawEvent("i3", PURCHASE, 9)]
