from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distft.data.sources.movielens.config import Config
from distft.errors import DataError


def read_config(config: Config) -> list[dict[str, Any]]:
    source = config.open()
    return [row for task in source.read_tasks() for batch in source.read(task) for row in batch.events.to_pylist()]


def read(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    source = Config(path=str(path)).open()
    batches = [batch for task in source.read_tasks() for batch in source.read(task)]
    events = [row for batch in batches for row in batch.events.to_pylist()]
    return events, [row for batch in batches for row in batch.rejected.to_pylist()]


def write_movies(folder: Path) -> None:
    movies = "1193::One Flew: Over (1975)::Drama\n7::Amélie (2001)::Comedy|Romance\n"
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))


def test_ratings_dat_with_movies_and_users(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n2::7::3::978300761\n2::7::3\n")
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    write_movies(tmp_path)
    events, rejected = read(tmp_path / "ratings.dat")
    assert [(row["user_id"], row["item_id"], row["value"], row["time_ms"]) for row in events] == [
        ("1", "1193", 5.0, 978_300_760_000),
        ("2", "7", 3.0, 978_300_761_000),
    ]
    assert [(row["row"], row["raw"]) for row in rejected] == [(3, "2::7::3")]
    source = Config(path=str(tmp_path / "ratings.dat")).open()
    assert source.has_clock
    items, users = source.items(), source.users()
    assert items is not None
    assert users is not None
    assert items.table.to_pylist() == [
        {"item_id": "1193", "title": "One Flew: Over (1975)", "genres": ["Drama"], "year": 1975.0},
        {"item_id": "7", "title": "Amélie (2001)", "genres": ["Comedy", "Romance"], "year": 2001.0},
    ]
    assert users.table.to_pylist()[1] == {"user_id": "2", "gender": "M", "age": 56.0, "occupation": "16"}


def test_typed_header(tmp_path: Path) -> None:
    (tmp_path / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n"
    )
    (tmp_path / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n242\tKolya\t1996\tComedy War\n"
    )
    events, rejected = read(tmp_path / "ml-100k.inter")
    assert [(row["user_id"], row["item_id"], row["value"]) for row in events] == [("196", "242", 3.0)]
    assert rejected == []
    source = Config(path=str(tmp_path / "ml-100k.inter")).open()
    items = source.items()
    assert items is not None
    assert items.table.to_pylist() == [
        {"item_id": "242", "title": "Kolya", "genres": ["Comedy", "War"], "year": 1996.0}
    ]
    assert source.users() is None


def test_ordered_pairs_have_no_clock_and_find_their_titles(tmp_path: Path) -> None:
    (tmp_path / "ml-1m_sas.txt").write_text("1 1\n1 2\n2 1\n")
    (tmp_path / "sas_to_original_items.txt").write_text("1 7\n2 1193\n3 99\n")
    write_movies(tmp_path)
    events, _ = read(tmp_path / "ml-1m_sas.txt")
    assert [(row["user_id"], row["item_id"], row["time_ms"]) for row in events] == [
        ("1", "1", None), ("1", "2", None), ("2", "1", None),
    ]  # fmt: skip
    source = Config(path=str(tmp_path / "ml-1m_sas.txt")).open()
    assert not source.has_clock
    items = source.items()
    assert items is not None
    assert items.table["title"].to_pylist() == ["Amélie (2001)", "One Flew: Over (1975)"]
    assert len(source.identity()["files"]) == 3


def test_editions_share_titles_and_an_order(tmp_path: Path) -> None:
    (tmp_path / "ml-1m_sas.txt").write_text("1 1\n1 2\n")
    (tmp_path / "sas_to_original_items.txt").write_text("1 7\n2 1193\n")
    (tmp_path / "sas_to_original_users.txt").write_text("1 2\n2 5\n")
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    write_movies(tmp_path)
    (tmp_path / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n196\t9\t3\t881250948\n"
    )
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    movies = ("242\tAmélie\t2001\tComedy", "9\tAmélie\t2001\tDrama", "8\tunknown\tunknown\tDrama")
    (tmp_path / "ml-100k.item").write_text(header + "\n".join(movies) + "\n")
    large = Config(path=str(tmp_path / "ml-1m_sas.txt"), ids="title")
    small = Config(path=str(tmp_path / "ml-100k.inter"), ids="title", clock=False)
    assert [row["item_id"] for row in read_config(large)] == ["Amélie (2001)", "One Flew: Over (1975)"]
    assert [row["item_id"] for row in read_config(small)] == ["Amélie (2001)", "Amélie (2001)"]
    source, items = small.open(), small.open().items()
    assert not source.has_clock
    assert items is not None
    assert items.table["item_id"].to_pylist() == ["Amélie (2001)", "unknown"]
    assert items.num_repeated == 1
    assert source.identity() != Config(path=small.path).open().identity()
    users = large.open().users()
    assert users is not None
    assert users.table.to_pylist() == [{"user_id": "1", "gender": "M", "age": 56.0, "occupation": "16"}]
    (tmp_path / "ml-100k.item").unlink()
    with pytest.raises(DataError, match="tells the titles"):
        read_config(small)


def test_another_layout_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text("user\titem\n1\t2\n")
    with pytest.raises(DataError, match="has no column 'user_id:token'"):
        read(tmp_path / "x.inter")
