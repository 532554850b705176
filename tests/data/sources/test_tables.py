from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distft.data.sources.tables import read_features
from distft.errors import DataError
from distft.job import Features

COLUMNS = {"item_id": "id", "category": "kind", "price": "cost", "title": "name"}


def features(path: Path, **changes: Any) -> Features:
    return Features(**{"path": str(path), "columns": COLUMNS} | changes)


def test_csv_of_another_encoding_and_separator(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes("id;kind;cost;name\n1.0;vélo;3.5;Été\n2.0;;free;\n;x;1;y\n".encode("latin-1"))
    table = read_features(features(path, separator=";", encoding="latin-1"), "item_id")
    assert (table.numeric, table.text) == (("price",), ("title",))
    assert table.table.to_pylist() == [
        {"item_id": "1", "category": "vélo", "price": 3.5, "title": "Été"},
        {"item_id": "2", "category": None, "price": None, "title": None},
    ]
    with pytest.raises(DataError, match="is not text in utf-8"):
        read_features(features(path, separator=";"), "item_id")


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
