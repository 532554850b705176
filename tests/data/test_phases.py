from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distft.data.encode import Encoder
from distft.data.parquet import read_table
from distft.data.shards import TrainReader, split_files
from distft.data.text import words
from distft.errors import DataError, LeakError
from distft.schema import target_schema, train_schema
from distft.storage import Storage
from tests.data import logs, naive

LEAVE_ONE_OUT = {"by": "leave_one_out", "ties": "ordered"}
BY_TIME = {"by": "time", "valid_days": 3, "test_days": 3}
RANDOM = {"by": "random", "valid_share": 0.2, "test_share": 0.2}


def prepared(folder: Path, **data: Any) -> tuple[Storage, dict[str, Any]]:
    logs.write_csv(folder / "log.csv", logs.rows())
    return logs.prepare_here(logs.job(folder, **data), folder / "run")


def table(dataset: Storage, split: str) -> pa.Table:
    manifest = dataset.verified("dataset")
    return pa.concat_tables([read_table(dataset, name) for name in split_files(manifest, split)])


def plain(encoder: Encoder, row: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The events of a shard's row in words: (time, item, type, query words, value)."""
    return [
        (time, encoder.item_ids[item] or None, encoder.event_names[code - 1], encoder.token_texts(query), value)
        for time, item, code, query, value in zip(
            row["time_ms"], row["item_row"], row["event"], row["query"], row["value"], strict=True
        )
    ]


def expected(encoder: Encoder, events: list[naive.Event]) -> list[tuple[Any, ...]]:
    known = set(encoder.item_ids.tolist())
    vocabulary = set(encoder.token_words)
    return [
        (
            time,
            item if item in known else None,
            kind,
            [word if word in vocabulary else "" for word in words(query or "")],
            value,
        )
        for time, item, kind, query, value, _ in events
    ]


@pytest.mark.parametrize(("split", "repeat_s"), [(LEAVE_ONE_OUT, 0), (LEAVE_ONE_OUT, 864_000), (BY_TIME, 0)])
def test_prepare_gives_what_the_naive_program_gives(tmp_path: Path, split: dict[str, Any], repeat_s: int) -> None:
    clean = {"min_user_events": 3, "min_item_events": 3, "max_rejected_share": 0.5, "repeat_window_s": repeat_s}
    dataset, stats = prepared(tmp_path, split=split, clean=clean)
    assert not repeat_s or stats["filtered"]["by_reason"]["repeated"] > 3
    encoder = Encoder.load(dataset / "encoder")
    wanted = {"purchase"}
    if split is BY_TIME:
        truth = naive.by_time(logs.rows(), 3, 3, wanted)
    else:
        truth = naive.leave_one_out(logs.rows(), 3, wanted, 1000 * repeat_s)
    assert encoder.item_ids.tolist()[2:] == truth.items
    assert Counter(stats["filtered"]["by_reason"]) == truth.filtered
    train = {row["user_id"]: plain(encoder, row) for row in table(dataset, "train").to_pylist()}
    assert train == {user: expected(encoder, events) for user, events in truth.train.items()}
    assert len(train) > 30
    for name, rows in (("valid", truth.valid), ("test", truth.test)):
        found = Counter(
            (
                row["user_id"],
                str(plain(encoder, row)),
                row["target_time_ms"],
                encoder.item_ids[row["target_item"]],
                row["target_value"],
            )
            for row in table(dataset, name).to_pylist()
        )
        known = set(truth.items)
        assert found == Counter(
            (user, str(expected(encoder, past)), target[0], target[1] if target[1] in known else "", target[4])
            for user, past, target in rows
        )
        assert len(rows) > 10
    counts = Counter(event[1] for events in truth.train.values() for event in events if event[2] == "purchase")
    assert encoder.counts.tolist()[2:] == [counts[item] for item in truth.items]


@pytest.mark.parametrize("split", [LEAVE_ONE_OUT, BY_TIME, RANDOM])
def test_every_row_is_accounted_for(tmp_path: Path, split: dict[str, Any]) -> None:
    dataset, stats = prepared(tmp_path, split=split)
    assert stats["rows_in"] == len(logs.rows())
    assert stats["rows_in"] == stats["kept"] + stats["rejected"]["total"] + stats["filtered"]["total"]
    assert stats["kept"] == sum(stats["events_kept"].values())
    rejected = pa.concat_tables(
        [read_table(dataset, name) for name in dataset.list("rejected") if name.endswith(".parquet")]
    ).to_pylist()
    assert Counter(row["reason"] for row in rejected) == stats["rejected"]["by_reason"]
    records = logs.rows()
    for row in rejected:
        assert row["raw"] == ",".join(records[row["row"] - 1])
    assert {row["reason"] for row in rejected} == {
        "missing user_id", "missing item_id", "unknown event", "bad timestamp", "bad value", "cancellation",
        "wrong number of columns",
    }  # fmt: skip


def test_shards_have_the_contract_schemas_and_dense_users(tmp_path: Path) -> None:
    dataset, stats = prepared(tmp_path)
    assert table(dataset, "train").schema == train_schema()
    assert table(dataset, "test").schema == target_schema()
    manifest = dataset.verified("dataset")
    assert len(split_files(manifest, "train")) == 4
    rows = {
        row["user_row"]: row["user_id"]
        for split in ("train", "valid", "test")
        for row in table(dataset, split).to_pylist()
    }
    assert set(rows) <= set(range(stats["users"]))
    assert len(set(rows.values())) == len(rows)
    assert manifest.info["splits"]["train"]["rows"] == len(table(dataset, "train"))
    assert dataset.list("work") == []
    reader = TrainReader(dataset, seed=1, num_streams=3, batch_size=8, max_history=10)
    assert reader.rows_per_epoch == stats["splits"]["train"]["rows"]


def test_random_split_shows_training_events_alone(tmp_path: Path) -> None:
    dataset, stats = prepared(tmp_path, split=RANDOM)
    train = {row["user_id"]: row for row in table(dataset, "train").to_pylist()}
    events = Counter[str]()
    for split in ("valid", "test"):
        for row in table(dataset, split).to_pylist():
            history = train.get(row["user_id"], {"item_row": [], "time_ms": []})
            assert row["item_row"] == history["item_row"]
            assert row["time_ms"] == history["time_ms"]
            events[split] += 1
    total = sum(events.values()) + sum(np.isin(row["event"], [2]).sum() for row in train.values())
    assert 0.1 < events["valid"] / total < 0.3
    assert 0.1 < events["test"] / total < 0.3
    assert stats["splits"]["test"]["rows"] == events["test"]


def test_the_same_job_gives_the_same_bytes(tmp_path: Path) -> None:
    first, _ = prepared(tmp_path)
    before = first.manifest("dataset")
    assert before is not None
    again, _ = logs.prepare_here(logs.job(tmp_path), tmp_path / "other")
    after = again.manifest("dataset")
    assert after is not None
    assert before.sha256 == after.sha256


def test_a_basket_of_one_moment_is_a_leak(tmp_path: Path) -> None:
    with pytest.raises(LeakError, match=r"targets \(.*\) have an event of their own moment .*by: time"):
        prepared(tmp_path, split={"by": "leave_one_out"})
    assert not (tmp_path / "run/dataset").exists()
    assert list((tmp_path / "run").iterdir()) == []


def test_too_many_unusable_rows_name_the_main_reason(tmp_path: Path) -> None:
    clean = {"max_rejected_share": 0.001}
    with pytest.raises(DataError, match=r"for '[a-z_ ]+': .*log\.csv:\d+: .*max_rejected_share"):
        prepared(tmp_path, clean=clean)


def test_a_k_core_that_leaves_nothing_says_so(tmp_path: Path) -> None:
    clean = {"min_user_events": 1000, "max_rejected_share": 0.5}
    with pytest.raises(DataError, match=r"No rows are left after cleaning: .* k_core_user"):
        prepared(tmp_path, clean=clean, split=LEAVE_ONE_OUT)


def purchases(folder: Path, records: list[str], **data: Any) -> None:
    """Prepares a log of purchases: user, item, time and pieces."""
    (folder / "log.csv").write_text("\n".join(["user,item,when,pieces", *records]))
    columns = {"user_id": "user", "item_id": "item", "timestamp": "when", "quantity": "pieces"}
    events = [{"source": "files", "path": f"{folder}/log.csv", "columns": columns, "event": "purchase"}]
    clean = {"min_user_events": 1, "min_item_events": 1}
    logs.prepare_here(logs.job(folder, **({"events": events, "clean": clean} | data)), folder / "run")


def test_a_log_of_cancellations_is_not_told_to_lower_the_minima(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"went 2 cancellation.*mapped as quantity") as caught:
        purchases(tmp_path, ["u,a,1600000000,-1", "u,b,1600000001,-1"])
    assert "min_user_events" not in str(caught.value)


def test_a_header_without_rows_holds_no_records(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hold no records"):
        purchases(tmp_path, [])


def test_hopeless_rows_are_not_to_be_allowed_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'bad timestamp'.*2024/01/31 or 20240131") as caught:
        purchases(tmp_path, ["u,a,31.12.2024,1", "u,b,31.12.2024,1"])
    assert "max_rejected_share" not in str(caught.value)


@pytest.mark.parametrize(
    ("minimum", "split", "said"),
    [
        (1, {"by": "time", "valid_days": 9, "test_days": 9},
         "train on: of 4 in the log, 4 were kept; the log spans 4.0 days, of which data.split takes the last 9 + 9. "
         "Expected purchase events in the training part. Shorten the windows of data.split, or give more data."),
        (2, {"by": "time", "valid_days": 1, "test_days": 0.5},
         "train on: of 4 in the log, 1 were kept, 3 events of all types fell to the minima of data.clean; the log "),
        (1, {"by": "leave_one_out"}, "test on: of 4 in the log, 4 were kept. Expected a user with three of them."),
    ],
)  # fmt: skip
def test_no_targets_left_says_where_they_went(tmp_path: Path, minimum: int, split: dict[str, Any], said: str) -> None:
    records = [f"u{day % 3},i{day},{1_600_000_000 + 86_400 * day},1" for day in (0, 1, 2, 4)]
    clean = {"min_user_events": 1, "min_item_events": minimum}
    with pytest.raises(DataError) as caught:
        purchases(tmp_path, records, split=split, clean=clean)
    assert said in str(caught.value)


def test_histories_are_cut_to_max_context(tmp_path: Path) -> None:
    dataset, _ = prepared(tmp_path, max_context=4)
    whole, _ = logs.prepare_here(logs.job(tmp_path), tmp_path / "other")
    cut, full = table(dataset, "test").to_pylist(), table(whole, "test").to_pylist()
    assert max(len(row["event"]) for row in full) > 4
    assert [row["time_ms"] for row in cut] == [row["time_ms"][-4:] for row in full]


def test_a_very_long_history_takes_several_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = prepared(tmp_path)
    monkeypatch.setattr("distft.data.tasks.MAX_ROW_EVENTS", 5)
    dataset, _ = logs.prepare_here(logs.job(tmp_path), tmp_path / "other")
    joined: dict[str, list[int]] = {}
    for row in table(dataset, "train").to_pylist():
        known = joined.setdefault(row["user_id"], [])
        assert len(known) == 5 * row["part"]
        assert len(row["time_ms"]) <= 5
        known += row["time_ms"]
    assert joined == {row["user_id"]: row["time_ms"] for row in table(whole, "train").to_pylist()}


def test_a_log_without_a_clock_keeps_its_order(tmp_path: Path) -> None:
    records = [[f"u{number % 7}", f"i{number % 5}"] for number in range(140)]
    logs.write_csv(tmp_path / "log.csv", records, ("user", "item"))
    events = {
        "source": "files",
        "path": str(tmp_path / "log.csv"),
        "columns": {"user_id": "user", "item_id": "item"},
        "event": "purchase",
    }
    wanted = logs.job(tmp_path, events=[events], split={"by": "leave_one_out"})
    dataset, stats = logs.prepare_here(wanted, tmp_path / "run")
    encoder = Encoder.load(dataset / "encoder")
    assert not encoder.has_clock
    assert stats["kept"] == 140
    for row in table(dataset, "test").to_pylist():
        user = row["user_id"]
        items = [item for name, item in records if name == user]
        assert [encoder.item_ids[item] for item in row["item_row"]] == items[:-1]
        assert encoder.item_ids[row["target_item"]] == items[-1]
        assert set(row["time_ms"]) == {-1}


def test_a_feature_table_of_another_shop_is_an_error(tmp_path: Path) -> None:
    logs.write_csv(tmp_path / "log.csv", logs.rows())
    (tmp_path / "tables").mkdir()
    logs.write_csv(tmp_path / "tables/items.csv", [["1", "a"], ["2", "b"]], ("id", "kind"))
    features = {"path": f"{tmp_path}/tables/items.csv", "columns": {"item_id": "id", "category": "kind"}}
    with pytest.raises(
        DataError, match=r"None of the 2 item_ids of the feature table .* '1', '2', the log .*data\.items"
    ):
        logs.prepare_here(logs.job(tmp_path, items=features), tmp_path / "run")
    people = features | {"columns": {"user_id": "id", "sex": "kind"}}
    with pytest.raises(
        DataError, match=r"None of the 2 user_ids of the feature table .* '1', '2', the log .*data\.users"
    ):
        logs.prepare_here(logs.job(tmp_path, users=people), tmp_path / "run")


def test_features_and_users_are_encoded(tmp_path: Path) -> None:
    logs.write_csv(tmp_path / "log.csv", logs.rows())
    (tmp_path / "tables").mkdir()
    items = [[f"i{number}", f"c{number % 3}", str(number), f"Item {number}"] for number in range(20)]
    logs.write_csv(tmp_path / "tables/items.csv", items, ("id", "kind", "cost", "name"))
    users = [[f"u{number}", "mf"[number % 2]] for number in range(40)]
    logs.write_csv(tmp_path / "tables/users.csv", users, ("id", "sex"))
    features = {"path": f"{tmp_path}/tables/items.csv"}
    columns = {"item_id": "id", "category": "kind", "price": "cost", "title": "name"}
    people = {"path": f"{tmp_path}/tables/users.csv", "columns": {"user_id": "id", "sex": "sex"}}
    wanted = logs.job(tmp_path, items=features | {"columns": columns}, users=people)
    dataset, stats = logs.prepare_here(wanted, tmp_path / "run")
    encoder = Encoder.load(dataset / "encoder")
    category = encoder.feature("category")
    for row, item in enumerate(encoder.item_ids.tolist()):
        if row >= 2 and int(item[1:]) < 20:
            assert category.spec.vocabulary[category.first_codes()[row]] == f"c{int(item[1:]) % 3}"
            assert encoder.titles([row]) == [f"Item {item[1:]}"]
    price = encoder.feature("price")
    trained = [row for row in range(2, encoder.num_items) if int(encoder.item_ids[row][1:]) < 20]
    raw = price.values[trained] * price.spec.std + price.spec.mean
    assert raw.round().astype(int).tolist() == [int(encoder.item_ids[row][1:]) for row in trained]
    codes = read_table(dataset, "users.parquet").to_pylist()
    assert len(codes) == stats["users"]
    sexes = {spec.name: spec.vocabulary for spec in encoder.user_features}["sex"]
    for row in table(dataset, "train").to_pylist():
        number = int(row["user_id"][1:])
        assert sexes[codes[row["user_row"]]["sex"]] == ("mf"[number % 2] if number < 40 else "")


def test_hashes_of_a_file_in_the_manifest_are_those_of_its_bytes(tmp_path: Path) -> None:
    dataset, _ = prepared(tmp_path)
    manifest = dataset.verified("dataset")
    for name, entry in manifest.files.items():
        assert hashlib.sha256((dataset.path / name).read_bytes()).hexdigest() == entry["sha256"]


def test_records_of_feature_tables_are_accounted_for(tmp_path: Path) -> None:
    logs.write_csv(tmp_path / "log.csv", logs.rows())
    (tmp_path / "tables").mkdir()
    items = [["i0", "5"], ["i1", "dear"], ["i0", "7"], ["", "8"], ["strange", "1"], ["i2", ""], ["i3", "900"]]
    logs.write_csv(tmp_path / "tables/items.csv", items, ("id", "cost"))
    table_keys = {"path": f"{tmp_path}/tables/items.csv", "columns": {"item_id": "id", "price": "cost"}}
    encode = {"features": {"price": {"clip": [0, 0.6]}}}
    clean = {"min_user_events": 3, "min_item_events": 3, "max_rejected_share": 0.5}
    dataset, stats = logs.prepare_here(
        logs.job(tmp_path, items=table_keys, encode=encode, clean=clean), tmp_path / "run"
    )
    assert stats["features"] == {
        "items": {
            "records": 7, "used": 4, "not_in_log": 1,
            "rejected": {"total": 1, "by_reason": {"missing item_id": 1}}, "repeated": 1,
            "bad_numbers": {"price": 1}, "missing": {"price": stats["items"] - 2}, "clipped": {"price": 1},
        }
    }  # fmt: skip
    rejected = read_table(dataset, "rejected_features/items.parquet").to_pylist()
    assert [(row["row"], row["reason"], row["raw"]) for row in rejected] == [(4, "missing item_id", ",8")]
    assert stats["rows_in"] == len(logs.rows())
    with pytest.raises(DataError, match=r"data\.encode\.features\.prize does not fit .* did you mean 'price'"):
        shop = [{"source": "synthetic", "num_users": 20}]
        odd = {"features": {"prize": {"clip": [0, 1]}}}
        logs.prepare_here(logs.job(tmp_path, events=shop, encode=odd), tmp_path / "other")


def test_what_was_cancelled_makes_no_repeat(tmp_path: Path) -> None:
    records = [f"u,{item},{1_600_000_000 + s},{n}" for item in "abc" for s, n in ((0, 1), (3, -1), (5, 1), (9, 1))]
    clean = {"min_user_events": 1, "min_item_events": 1, "repeat_window_s": 10}
    purchases(tmp_path, records, clean=clean, split=LEAVE_ONE_OUT)
    stats = (Storage(tmp_path / "run") / "dataset").read_json("stats.json")
    assert (stats["kept"], stats["rejected"]["by_reason"]) == (3, {"cancellation": 3})
    assert (stats["filtered"]["by_reason"]["cancelled"], stats["filtered"]["by_reason"]["repeated"]) == (3, 3)


def test_an_empty_validation_split_is_told(tmp_path: Path) -> None:
    times = [0, 1, 2, 30, 31]
    records = [f"u,i{n},{1_600_000_000 + 86_400 * day},1" for n, day in enumerate(times)]
    purchases(tmp_path, records, split={"by": "time", "valid_days": 3, "test_days": 3})
    dataset = Storage(tmp_path / "run") / "dataset"
    manifest = dataset.manifest("dataset")
    assert manifest is not None
    assert manifest.info["warnings"] == dataset.read_json("stats.json")["warnings"]
    assert [text.split(":")[0] for text in manifest.info["warnings"]] == ["The validation split is empty"]


def test_values_beyond_the_quantiles_of_training_are_clipped_and_counted(tmp_path: Path) -> None:
    plain, _ = prepared(tmp_path)
    clean = {"min_user_events": 3, "min_item_events": 3, "max_rejected_share": 0.5, "clip_value": [0.1, 0.8]}
    dataset, stats = logs.prepare_here(logs.job(tmp_path, clean=clean), tmp_path / "clipped")
    before, after = (np.concatenate(table(one, "train")["value"].to_pylist()) for one in (plain, dataset))
    low, high = np.quantile(before, [0.1, 0.8], method="inverted_cdf")
    assert (stats["values"]["low"], stats["values"]["high"]) == (low, high)
    assert Encoder.load(dataset / "encoder").value_bounds == (low, high)
    assert after.tolist() == np.clip(before, low, high).tolist()
    targets = [np.array(table(one, "test")["target_value"].to_pylist()) for one in (plain, dataset)]
    assert targets[1].tolist() == np.clip(targets[0], low, high).tolist()
    assert stats["values"]["clipped"] >= ((before < low) | (before > high)).sum() > 0
