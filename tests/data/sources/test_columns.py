from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distft.data.sources.tables import read_features
from distft.errors import DataError
from distft.sections.features import Features
from tests.data.sources.test_files import COLUMNS, config, mistake, read

STRUCT = pa.array([{"a": 1}])
GOOD: dict[str, pa.Array] = {
    "user": pa.array(["u"]),
    "item": pa.array([1]),
    "when": pa.array([1_600_000_000]),
    "words": pa.array(["red shoes"]),
    "price": pa.array(["1.5"]),
    "pieces": pa.array([1]),
}
ALL = COLUMNS | {"query": "words", "value": "price", "quantity": "pieces"}


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("user", pa.array([["u"]]), "(for user_id) holds list<"),
        ("item", STRUCT, "(for item_id) holds struct<"),
        ("item", pa.array([b"abcd"], pa.binary(4)), "(for item_id) holds fixed_size_binary"),
        ("when", pa.array([True]), "(for timestamp) holds bool"),
        ("when", pa.array([7], pa.time64("us")), "(for timestamp) holds time64"),
        ("price", STRUCT, "(for value) holds struct<"),
        ("pieces", pa.array([[1]]), "(for quantity) holds list<"),
        ("words", pa.array([[STRUCT[0]]]), "(for query) holds list<"),
    ],
)
def test_a_parquet_column_of_an_unusable_type(tmp_path: Path, name: str, column: pa.Array, said: str) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(GOOD | {name: column}), path)
    text = mistake(config(path, columns=ALL))
    assert f"Column '{name}' of {path} {said}" in text


def test_a_query_may_be_a_list_of_words(tmp_path: Path) -> None:
    words = pa.array([["red", None, "shoes"], [], None])
    one = {name: pa.array(column.to_pylist() * 3) for name, column in GOOD.items()}
    pq.write_table(pa.table(one | {"words": words}), tmp_path / "log.parquet")
    events, _ = read(config(tmp_path / "log.parquet", columns=ALL))
    assert [row["query"] for row in events] == ["red shoes", None, None]


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    names = ["user", "item", "when", "user"]
    pq.write_table(pa.table([GOOD[name] for name in names], names=names), tmp_path / "log.parquet")
    (tmp_path / "log.csv").write_text("user,item,when,user\nu,a,1600000000,v\n")
    for name in ("log.parquet", "log.csv"):
        assert "has 2 columns 'user' (for user_id)" in mistake(config(tmp_path / name))


def test_a_blank_first_line(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("\nuser,item,when\nu,a,1600000000\n")
    assert "The first line of" in mistake(config(tmp_path / "log.csv"))


def test_what_is_no_table_is_listed_in_short(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(bytes(range(128, 256)) * 100)
    assert len(mistake(config(tmp_path / "log.csv"))) < 500


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_key_that_no_json_record_has(tmp_path: Path) -> None:
    record = {"user": "u", "article": "a", "when": 1_600_000_000}
    path = jsonl(tmp_path / "log.jsonl", record, 7, record)
    text = mistake(config(path, columns=COLUMNS | {"item_id": "artikle"}))
    assert "None of the first 2 records of" in text
    assert "has a key 'artikle' (for item_id)" in text
    assert "user, article, when" in text
    assert "Did you mean 'article'?" in text


def test_a_key_that_is_rare_may_be_missing_from_the_first_json_records(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "log.jsonl", {"user": "u", "item": "a", "when": 1_600_000_000, "other": 1})
    assert len(read(config(path, columns=ALL))[0]) == 1
    jsonl(path, {"user": "u", "item": "a", "when": 1_600_000_000, "word": "red"})
    assert "Did you mean 'word'?" in mistake(config(path, columns=ALL))


def test_a_json_array(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text('\n [{"user": "u", "item": "a", "when": 1600000000}]')
    text = mistake(config(tmp_path / "log.json"))
    assert "is a JSON array" in text
    assert "jq -c" in text


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("id", pa.array([["a"]]), "(for item_id) holds list<"),
        ("cost", pa.array([[1.5]]), "(for price) holds list<"),
        ("name", pa.array([["a"]]), "(for title) holds list<"),
        ("kind", STRUCT, "(for category) holds struct<"),
        ("kind", pa.array([[STRUCT[0]]]), "(for category) holds list<"),
    ],
)
def test_a_feature_column_of_an_unusable_type(tmp_path: Path, name: str, column: pa.Array, said: str) -> None:
    columns = {"item_id": "id", "category": "kind", "price": "cost", "title": "name"}
    good = {"id": GOOD["item"], "kind": GOOD["user"], "cost": GOOD["price"], "name": GOOD["words"]}
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table(good | {name: column}), path)
    with pytest.raises(DataError) as caught:
        read_features(Features(path=str(path), columns=columns), "item_id", 0.5)
    assert f"Column '{name}' of {path} {said}" in str(caught.value)
