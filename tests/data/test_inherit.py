"""A day that is added to a shop: the old rows stay what they were, and what is new comes after them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distft.data.encode import Encoder, RawEvent
from distft.data.features import encode_features, keep_rows
from distft.data.inherit import base_identity
from distft.data.parquet import read_table
from distft.data.shards import load_histories
from distft.data.sources.base import FeatureTable
from distft.errors import ArtefactError, DistftError, UsageError
from distft.job import Job
from distft.schema import NUM_RESERVED, UNKNOWN
from distft.sections.features import Encode
from distft.storage import Storage
from tests.data import logs

ITEM_COLUMNS = {"item_id": "id", "category": "kinds", "price": "cost", "title": "name", "brand": "brand"}
TYPES = logs.TYPES | {"fav": "favourite"}


def write_day(folder: Path, first: int, end: int, seed: int) -> None:
    """A log over the items ``first`` to ``end``, and tables of features of these items and of some users."""
    (folder / "tables").mkdir(parents=True)
    rows = [list(row) for row in logs.rows(num_items=end - first, seed=seed)]
    for row in rows:
        if row[1].startswith("i"):
            row[1] = f"i{first + int(row[1][1:])}"
    rows += [["u1", f"i{first}", "fav", str(logs.START_S), "", "1", "1"]] if seed != 3 else []
    for row in rows:
        row[4:5] = [word.replace("shoes", f"shoes day{seed}") for word in row[4:5]]
    logs.write_csv(folder / "log.csv", rows)
    numbers = range(first, end)
    items = [[f"i{n}", f"c{n % 3 + first // 15}", str(n * 10), f"Item {n} of {seed}", f"b{n % 2}"] for n in numbers]
    logs.write_csv(folder / "tables/items.csv", items, ("id", "kinds", "cost", "name", "brand"))
    users = [[f"u{n}", "mfx"[n % (2 + (seed != 3))], str(20 + n + seed)] for n in range(40)]
    logs.write_csv(folder / "tables/users.csv", users, ("id", "sex", "age"))


def job(folder: Path, base: object | None = None, **data: Any) -> Job:
    events = {"source": "files", "path": f"{folder}/log.csv", "columns": logs.COLUMNS, "event_types": TYPES}
    tables = {
        "items": {"path": f"{folder}/tables/items.csv", "columns": ITEM_COLUMNS},
        "users": {
            "path": f"{folder}/tables/users.csv",
            "columns": {"user_id": "id", "sex": "sex", "age": "age"},
            "numeric": ["age"],
        },
    }
    vocabulary = {} if base is None else {"vocabulary": {"from": str(base)}}
    return logs.job(folder, **({"events": [events]} | tables | vocabulary | data))


def prepared(folder: Path, base: object | None = None, **data: Any) -> Storage:
    return logs.prepare_here(job(folder, base, **data), folder / "run")[0]


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three days, each prepared on the one before; the base's search and view stand in another order than today's."""
    folder = tmp_path_factory.mktemp("days")
    first, second, third = (folder / name for name in ("first", "second", "third"))
    write_day(first, 0, 25, 3)
    write_day(second, 10, 40, 4)
    write_day(third, 20, 50, 5)
    old_types = {"buy": "purchase", "find": "search", "pv": "view"}
    events = {"source": "files", "path": f"{first}/log.csv", "columns": logs.COLUMNS, "event_types": old_types}
    prepared(first, events=[events])
    prepared(second, first / "run/dataset")
    prepared(third, second / "run/dataset")
    return {"first": first, "second": second, "third": third}


def encoder(folder: Path) -> Encoder:
    return Encoder.of_dataset(Storage(folder / "run/dataset"))


def values(of: Encoder, row: int) -> dict[str, Any]:
    """Every feature of an item's row, in numbers."""
    found: dict[str, Any] = {}
    for column in of.features:
        if column.spec.kind == "category":
            found[column.spec.name] = column.codes[column.offsets[row] : column.offsets[row + 1]].tolist()
        else:
            found[column.spec.name] = (column.values if column.spec.kind == "number" else column.texts)[row]
    return found


def test_every_old_row_stays_and_new_ones_follow(days: dict[str, Path]) -> None:
    old, new = encoder(days["first"]), encoder(days["second"])
    assert old.event_names == ("purchase", "search", "view")
    assert new.event_names == ("purchase", "search", "view", "favourite")
    assert new.item_ids[: old.num_items].tolist() == old.item_ids.tolist()
    assert new.token_words[: len(old.token_words)] == old.token_words
    assert "day3" in old.token_words
    assert "day4" in new.token_words[len(old.token_words) :]
    added = new.item_ids[old.num_items :].tolist()
    assert len(added) > 5
    assert not set(added) & set(old.item_ids.tolist())
    order = sorted(added, key=lambda item: (-new.counts[new.item_rows([item])[0]], item))
    assert added == order
    for before, after in zip(old.features, new.features, strict=True):
        size = len(before.spec.vocabulary)
        assert after.spec.vocabulary[:size] == before.spec.vocabulary
        assert list(after.spec.vocabulary[size:]) == sorted(after.spec.vocabulary[size:])
        assert (after.spec.mean, after.spec.std) == (before.spec.mean, before.spec.std)
    assert old.feature("price").spec.mean > 0
    assert [spec.name for spec in new.user_features] == ["sex", "age"]
    assert new.user_features[0].vocabulary == ("", "", "f", "m", "x")
    assert old.user_features[0].vocabulary == ("", "", "f", "m")
    assert new.user_features[1].mean == old.user_features[1].mean


def test_features_are_todays_where_there_are_any(days: dict[str, Path]) -> None:
    old, new = encoder(days["first"]), encoder(days["second"])
    for row, item in enumerate(old.item_ids.tolist()):
        if row >= NUM_RESERVED and int(item[1:]) < 10:  # not in the second day's table
            assert values(new, row) == values(old, row)
            assert new.counts[row] == 0
        elif row >= NUM_RESERVED:
            assert new.titles([row]) == [f"Item {item[1:]} of 4"]
    price = new.feature("price")
    for row in range(old.num_items, new.num_items):
        raw = price.values[row] * price.spec.std + price.spec.mean
        assert round(float(raw)) == 10 * int(new.item_ids[row][1:])
    assert new.popularity[0] == int(np.argmax(new.counts[NUM_RESERVED:])) + NUM_RESERVED
    histories = load_histories(Storage(days["second"] / "run/dataset"), "train")
    bought = histories.item_row[np.isin(histories.event, new.target_codes)]
    assert new.counts.tolist() == np.bincount(bought, minlength=new.num_items).tolist()


def test_the_old_log_has_the_same_rows_under_both(days: dict[str, Path]) -> None:
    old, new = encoder(days["first"]), encoder(days["second"])
    known = {"buy": "purchase", "find": "search", "pv": "view"}
    events = [
        RawEvent(row[1] or None, known[row[2]], int(row[3]), row[4])
        for row in logs.rows()
        if len(row) > 4 and row[2] in known and row[3].isdigit() and (row[1] or row[2] == "find")
    ]
    before, after = old.encode_events(events), new.encode_events(events)
    assert before.event.tolist() == after.event.tolist()
    for rows, again in ((before.item_row, after.item_row), (before.query_tokens, after.query_tokens)):
        assert rows[rows > UNKNOWN].tolist() == again[rows > UNKNOWN].tolist()
    table = read_table(Storage(days["second"] / "run/dataset"), "users.parquet")
    assert table["sex"].to_pylist().count(4) > 5, "the new category has the code after the old ones"


def test_rows_appended_are_told_over_a_chain(days: dict[str, Path]) -> None:
    first, second, third = (encoder(days[name]) for name in days)
    assert first.ancestors == ()
    assert [first.num_base_rows(name) for name in first.sizes] == [0] * len(first.sizes)
    assert [one.identity for one in third.ancestors] == [first.identity, second.identity]
    assert third.ancestors[0].rows == first.sizes
    for name, size in second.sizes.items():
        assert third.num_base_rows(name) == size <= third.sizes[name]
    assert third.sizes["items.category"] > second.sizes["items.category"]
    assert third.item_ids[: second.num_items].tolist() == second.item_ids.tolist()
    described = Storage(days["third"] / "run/dataset").read_json("stats.json")["vocabulary"]
    assert described["from"] == second.identity
    assert described["appended_rows"]["items"] == third.num_items - second.num_items
    assert third.catalog().num_items == third.num_items


def test_lists_of_categories_are_kept_too() -> None:
    ids = np.array(["", "", "a", "b"], np.object_)
    trained = np.zeros(4, np.bool_)
    old = FeatureTable(pa.table({"item_id": ["a", "b"], "tags": pa.array([["x", "y"], []])}), "item_id")
    (before,) = encode_features(old, ids, trained, NUM_RESERVED, Encode())
    today = FeatureTable(pa.table({"item_id": ["b", "c"], "tags": pa.array([["z", "x"], ["y", "a"]])}), "item_id")
    more = np.append(ids, np.array(["c"], np.object_))
    (column,) = encode_features(today, more, np.zeros(5, np.bool_), NUM_RESERVED, Encode(), {"tags": before.spec})
    merged = keep_rows(column, before, np.array([True, True, True, False]))
    assert merged.spec.vocabulary == ("", "", "x", "y", "a", "z")
    assert merged.to_arrow().to_pylist() == [[0], [1], [2, 3], [5, 2], [3, 4]]


def bundle(folder: Path, at: Path) -> Path:
    shutil.copytree(folder / "run/dataset/encoder", at / "encoder")
    Storage(at).write_manifest("bundle")
    return at


def test_a_bundle_is_the_same_base_as_its_dataset_and_stays_as_it_is(days: dict[str, Path], tmp_path: Path) -> None:
    place = bundle(days["first"], tmp_path / "bundle")
    before = Storage(place).verified("bundle")
    again, _ = logs.prepare_here(job(days["second"], place), tmp_path / "again")
    manifest = Storage(days["second"] / "run/dataset").verified("dataset")
    assert again.verified("dataset").sha256 == manifest.sha256, "and the same bytes again"
    assert Storage(place).verified("bundle") == before
    assert base_identity(str(place), Storage(tmp_path / "again")) == encoder(days["first"]).identity


def test_the_identity_is_of_rows_and_not_of_counts(days: dict[str, Path], tmp_path: Path) -> None:
    one = encoder(days["first"])
    fewer = Encoder(**{**_fields(one), "counts": one.counts * 0})
    assert fewer.identity == one.identity
    for change in (
        {"item_ids": one.item_ids[:-1]},
        {"token_words": (*one.token_words[:-1], "other")},
        {"has_clock": False},
        {"features": one.features[:-1]},
        {"user_features": one.user_features[:-1]},
        {"ancestors": (one.as_ancestor(),)},
    ):
        assert Encoder(**{**_fields(one), **change}).identity != one.identity, change
    one.save(Storage(tmp_path))
    assert Encoder.load(Storage(tmp_path)).identity == one.identity


def _fields(of: Encoder) -> dict[str, Any]:
    return {name: getattr(of, name) for name in Encoder.__dataclass_fields__}


def refused(days: dict[str, Path], base: object, **data: Any) -> str:
    with pytest.raises(DistftError) as caught:
        logs.prepare_here(job(days["second"], base, **data), days["second"] / "other")
    assert isinstance(caught.value, ArtefactError)
    assert not (days["second"] / "other").exists()
    return str(caught.value)


def test_a_base_that_does_not_fit_is_refused_in_words(days: dict[str, Path], tmp_path: Path) -> None:
    base = days["first"] / "run/dataset"
    told = refused(days, base, items=None, users=None)
    assert "item feature price is in the base and not in this job" in told
    assert "user feature sex is in the base" in told
    items = {"path": f"{days['second']}/tables/items.csv", "columns": ITEM_COLUMNS, "numeric": ["price", "brand"]}
    items["columns"] = {**ITEM_COLUMNS, "cost": "cost"}
    (tmp_path / "numbers.csv").write_text("id,kinds,cost,name,brand\ni20,c1,3,x,7\n")
    told = refused(days, base, items=items | {"path": f"{tmp_path}/numbers.csv"})
    assert "item feature brand has kind category in the base and number in this job" in told
    assert "item feature cost is in this job and not in the base" in told
    columns = {name: column for name, column in logs.COLUMNS.items() if name != "timestamp"}
    events = {"source": "files", "path": f"{days['second']}/log.csv", "columns": columns, "event_types": TYPES}
    told = refused(days, base, events=[events], split={"by": "leave_one_out"})
    assert "the base's log has timestamps, today's has none" in told


def test_a_base_that_is_missing_or_damaged_is_refused(days: dict[str, Path], tmp_path: Path) -> None:
    assert f"Did you mean {days['first']}/run/dataset?" in refused(days, days["first"] / "run")
    assert "there is no dataset or bundle at" in refused(days, tmp_path / "nothing")
    Storage(tmp_path / "train").make()
    Storage(tmp_path / "train").write_manifest("train")
    assert "holds a train, which has no vocabulary" in refused(days, tmp_path / "train")
    place = bundle(days["first"], tmp_path / "bundle")
    data = bytearray((place / "encoder/items.parquet").read_bytes())
    data[100] ^= 1
    (place / "encoder/items.parquet").write_bytes(data)
    assert "items.parquet has SHA-256" in refused(days, place)
    with pytest.raises(UsageError, match=r"lies in this job's own storage .*Set another storage"):
        base_identity(str(days["first"] / "run/dataset"), Storage(days["first"] / "run"))
