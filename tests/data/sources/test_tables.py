from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distft.data.sources import tables
from distft.data.sources.base import FeatureTable
from distft.errors import DataError
from distft.sections.features import Features

COLUMNS = {"item_id": "id", "category": "kind", "price": "cost", "title": "name"}


def read_features(config: Features, key: str) -> FeatureTable:
    return tables.read_features(config, key, 0.5)


def features(path: Path, **changes: Any) -> Features:
    return Features(**{"path": str(path), "columns": COLUMNS} | changes)


def test_csv_of_another_encoding_and_separator(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes("id;kind;cost;name\n1.0;vélo;3.5;Été\n2.0;;free;\n".encode("latin-1"))
    table = read_features(features(path, separator=";", encoding="latin-1"), "item_id")
    assert (table.numeric, table.text) == (("price",), ("title",))
    assert table.table.to_pylist() == [
        {"item_id": "1", "category": "vélo", "price": 3.5, "title": "Été"},
        {"item_id": "2", "category": None, "price": None, "title": None},
    ]
    assert table.bad_numbers == {"price": 1}
    with pytest.raises(DataError, match=r"1 of the 2 .* 'undecodable text': .*csv:1: 1.0;v.*latin-1: it is .* utf-8"):
        tables.read_features(features(path, separator=";"), "item_id", 0.4)


def test_csv_without_a_header_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("u1,7,a\nu2,8,b\n")
    config = Features(path=str(path), header=("user", "id", "kind"), columns={"item_id": "id", "category": "kind"})
    assert read_features(config, "item_id").table.to_pylist() == [
        {"item_id": "7", "category": "a"}, {"item_id": "8", "category": "b"},
    ]  # fmt: skip


def test_parquet_keeps_lists_of_categories(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame({"id": [1, 2], "kind": [["a", "b"], []], "cost": [1, 2], "name": ["x", "y"]}).write_parquet(path)
    table = read_features(features(path), "item_id").table
    assert table["item_id"].to_pylist() == ["1", "2"]
    assert table["category"].to_pylist() == [["a", "b"], []]
    assert table["price"].to_pylist() == [1.0, 2.0]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": 7, "kind": "a", "cost": "2.5", "name": "x"}\n')
    table = read_features(features(path), "item_id").table
    assert table.to_pylist() == [{"item_id": "7", "category": "a", "price": 2.5, "title": "x"}]


def test_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("id,kind,price,name\n")
    with pytest.raises(DataError, match="has no column 'cost'"):
        read_features(features(path), "item_id")
    with pytest.raises(DataError, match="has no user_id"):
        read_features(features(path), "user_id")
    path.write_text("id,kind,cost,name\n")
    with pytest.raises(DataError, match="holds no records"):
        read_features(features(path), "item_id")


def test_an_unknown_encoding(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,kind,cost,name\n1,a,1,x\n")
    with pytest.raises(DataError, match="There is no encoding 'latin-one'"):
        read_features(features(tmp_path / "items.csv", encoding="latin-one"), "item_id")
    (tmp_path / "items.csv").write_bytes("id,kind,cost,name\n1,a,1,é\n".encode())
    with pytest.raises(DataError, match="is not text in ascii"):
        read_features(features(tmp_path / "items.csv", encoding="ascii"), "item_id")


def test_a_numeric_feature_without_a_number(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("id,kind,cost,name\n1,a,$1.5,x\n2,a,,x\n3,a,$2,x\n4,a,$9,x\n")
    with pytest.raises(DataError, match=r"No value of 'price' in .* is a number, for instance: '\$1.5', '\$2', '\$9'"):
        read_features(features(path), "item_id")
    path.write_text("id,kind,cost,name\n1,a,,x\n")
    assert read_features(features(path), "item_id").table["price"].to_pylist() == [None]


def test_files_of_a_table_may_differ_in_their_types(tmp_path: Path) -> None:
    columns = {"item_id": "id", "category": "kind"}
    pl.DataFrame({"id": [1.0], "kind": ["a"]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"id": ["2"], "kind": [7]}).write_parquet(tmp_path / "b.parquet")
    table = read_features(features(tmp_path / "*.parquet", columns=columns), "item_id").table
    assert table.to_pylist() == [{"item_id": "1", "category": "a"}, {"item_id": "2", "category": "7"}]
    pl.DataFrame({"id": ["3"], "kind": [["a"]]}).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(DataError, match="is a list in some files"):
        read_features(features(tmp_path / "*.parquet", columns=columns), "item_id")


def test_a_table_whose_records_are_mostly_unusable(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("id,kind,cost,name\n1,a,1,x\n2,a,1,x,y\n3,a,1\n")
    with pytest.raises(
        DataError, match=r"2 of the 3 records of .* unusable.* 'wrong number of columns': .*items.csv:2: 2,a,1,x,y"
    ):
        read_features(features(path), "item_id")
    path.write_text("id,kind,cost,name\n,a,1,x\n")
    with pytest.raises(DataError, match=r"1 of the 1 .* 'missing item_id': .*Map another column than 'id'"):
        read_features(features(path), "item_id")


def test_every_record_is_used_or_rejected_with_its_reason(tmp_path: Path) -> None:
    lines = [b"1,a,5,x", b"2,b", b",c,5,x", b"1,d,6,y", b"3,caf\xe9,5,x", b'3,"e', b"3,f,1e999,z", b"4,g,cheap,z"]
    (tmp_path / "a.csv").write_bytes(b"id,kind,cost,name\n" + b"\n".join(lines) + b"\n")
    (tmp_path / "b.csv").write_text("id,kind,cost,name\n5,h,1e40,x\n4,i,1,x\n,,,\n")
    table = tables.read_features(features(tmp_path / "*.csv"), "item_id", 0.6)
    assert [(row["item_id"], row["category"], row["price"]) for row in table.table.to_pylist()] == [
        ("1", "a", 5.0), ("3", "f", None), ("4", "g", None), ("5", "h", None),
    ]  # fmt: skip
    assert table.bad_numbers == {"price": 3}
    assert table.rejected is not None
    found = [(row["file"][-5:], row["row"], row["reason"], row["raw"]) for row in table.rejected.to_pylist()]
    assert found == [
        ("a.csv", 2, "wrong number of columns", "2,b"),
        ("a.csv", 3, "missing item_id", ",c,5,x"),
        ("a.csv", 5, "undecodable text", "3,caf\ufffd,5,x"),
        ("a.csv", 6, "open quote", '3,"e'),
        ("b.csv", 3, "missing item_id", ",,,"),
    ]
    assert table.num_repeated == 2
    assert len(found) + len(table.table) + table.num_repeated == 8 + 3


def test_ids_that_are_no_whole_numbers_keep_their_fraction(tmp_path: Path) -> None:
    pl.DataFrame({"id": [6.0, 6.5], "kind": ["a", "b"]}).write_parquet(tmp_path / "a.parquet")
    wanted = features(tmp_path / "a.parquet", columns={"item_id": "id", "category": "kind"})
    assert read_features(wanted, "item_id").table["item_id"].to_pylist() == ["6", "6.5"]
