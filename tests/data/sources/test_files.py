from __future__ import annotations

import gzip
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from distft.data.sources.base import event_schema, rejected_schema
from distft.data.sources.files.config import Config
from distft.errors import DataError
from distft.storage import Storage

COLUMNS = {"user_id": "user", "item_id": "item", "timestamp": "when"}


def config(path: Path | str, **changes: Any) -> Config:
    return Config(**{"path": str(path), "columns": COLUMNS, "event": "purchase"} | changes)


def read(wanted: Config) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(events, rejected) of all tasks, as rows."""
    source = wanted.open()
    events, rejected = [], []
    for task in source.read_tasks():
        for batch in source.read(task):
            assert batch.events.schema == event_schema()
            assert batch.rejected.schema == rejected_schema()
            events += batch.events.to_pylist()
            rejected += batch.rejected.to_pylist()
    return events, rejected


def test_csv_with_quotes_compression_and_bad_rows(tmp_path: Path) -> None:
    text = (
        "user,item,when,note\r\n"
        'u1,"a,1",1600000000,"two\nlines"\r\n'
        "u2,b\r\n"
        "\r\n"
        ",c,1600000001,x\r\n"
        'u3,"say ""hi""",soon,x\r\n'
        "u4,d,1600000002,x,y\r\n"
        "u5,,1600000003,\r\n"
        "u6,e,1600000004,z"
    )
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    events, rejected = read(config(path))
    assert [(row["row"], row["user_id"], row["item_id"], row["time_ms"]) for row in events] == [
        (1, "u1", "a,1", 1_600_000_000_000),
        (7, "u6", "e", 1_600_000_004_000),
    ]
    assert [(row["row"], row["reason"], row["raw"]) for row in rejected] == [
        (2, "wrong number of columns", "u2,b"),
        (3, "missing user_id", ",c,1600000001,x"),
        (4, "bad timestamp", 'u3,"say ""hi""",soon,x'),
        (5, "wrong number of columns", "u4,d,1600000002,x,y"),
        (6, "missing item_id", "u5,,1600000003,"),
    ]
    assert {row["file"] for row in rejected} == {str(path)}


def test_an_open_quote_does_not_swallow_the_file_unseen(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('user,item,when\nu0,a,1600000000\nu1,"a,1600000000\n' + "u2,b,1600000000\n" * 500)
    events, rejected = read(config(path))
    assert [(row["row"], row["user_id"]) for row in events] == [
        (1, "u0"),
        *((number, "u2") for number in range(3, 503)),
    ]
    assert [(row["row"], row["reason"], row["raw"]) for row in rejected] == [(2, "open quote", 'u1,"a,1600000000')]


def test_an_open_quote_in_the_last_column_costs_its_own_row(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    plain, search = "u2,b,1600000000,\n", 'u3,b,1600000000,"red shoes"\n'
    path.write_text(
        "user,item,when,words\n" + plain + 'u1,b,1600000000,"5 inch phone\n' + plain * 3000 + search + plain
    )
    events, rejected = read(config(path, columns=COLUMNS | {"query": "words"}))
    assert [(row["row"], row["reason"]) for row in rejected] == [(2, "open quote")]
    assert [row["row"] for row in events] == [1, *range(3, 3005)]
    assert {row["query"] for row in events} == {None, "red shoes"}


def test_undecodable_text_is_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"user,item,when\nu1,caf\xe9,1600000000\nu2,caf\xc3\xa9,1600000000\n")
    events, rejected = read(config(path))
    assert [row["item_id"] for row in events] == ["café"]
    assert [(row["row"], row["reason"]) for row in rejected] == [(1, "undecodable text")]


def test_ids_of_a_float_column_lose_their_point(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item,when\n17850.0,1.0,1600000000\n,2.0,1600000000\n12.0,2.5,1600000000\n")
    events, _ = read(config(path))
    assert [(row["user_id"], row["item_id"]) for row in events] == [("17850", "1.0"), ("12", "2.5")]


def test_negative_quantities_are_cancellations(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item,when,n\nu,a,1600000000,2\nu,a,1600000001,-2\nu,a,1600000002,x\nu,a,1600000002,\n")
    events, rejected = read(config(path, columns=COLUMNS | {"quantity": "n"}))
    assert [row["quantity"] for row in events] == [2.0, -2.0, None]
    assert [(row["row"], row["reason"]) for row in rejected] == [(2, "cancellation"), (3, "bad quantity")]


def test_event_types_translate_and_reject(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("u1,a,pv,1600000000\nu1,a,buy,1600000000\nu1,a,fav,1600000000\nu1,,find,1600000000\n")
    wanted = config(
        path,
        header=["user", "item", "what", "when"],
        columns=COLUMNS | {"event": "what"},
        event=None,
        event_types={"pv": "view", "buy": "purchase", "find": "search"},
    )
    events, rejected = read(wanted)
    assert [row["event"] for row in events] == ["view", "purchase", "search"]
    assert [row["reason"] for row in rejected] == ["unknown event"]


def test_raw_event_values_may_be_numbers_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item,what,when\nu1,a,1,1600000000\nu1,a,3,1600000000\n")
    wanted = config(path, columns=COLUMNS | {"event": "what"}, event=None, event_types={1: "view", 2: "purchase"})
    events, rejected = read(wanted)
    assert [row["event"] for row in events] == ["view"]
    assert [row["reason"] for row in rejected] == ["unknown event"]


def test_a_file_of_bad_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item,when\nu1\nu2\n")
    events, rejected = read(config(path))
    assert events == []
    assert [row["row"] for row in rejected] == [1, 2]


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        json.dumps({"user": 7, "item": "a", "when": "2020-09-13T12:26:40Z", "extra": [1]}),
        '{"user": 1',
        "",
        "[1]",
        json.dumps({"user": 8.0, "item": 3, "when": "2020-09-13 14:26:40+02:00"}),
        json.dumps({"user": None, "item": 3, "when": "2020-09-13"}),
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(lines))
    events, rejected = read(config(path))
    assert [(row["row"], row["user_id"], row["item_id"], row["time_ms"]) for row in events] == [
        (1, "7", "a", 1_600_000_000_000),
        (4, "8", "3", 1_600_000_000_000),
    ]
    assert [(row["row"], row["reason"], row["raw"]) for row in rejected] == [
        (2, "not a JSON object", '{"user": 1'),
        (3, "not a JSON object", "[1]"),
        (5, "missing user_id", lines[5]),
    ]


def test_parquet_is_read_by_row_groups_with_its_own_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distft.data.sources.files.source.TASK_BYTES", 1)
    when = datetime(2020, 9, 13, 12, 26, 40, tzinfo=timezone.utc)
    frame = pl.DataFrame(
        {
            "user": [1.0, None, 3.0, 4.0, 5.0],
            "item": pl.Series(["a", "b", "a", "a", ""], dtype=pl.Categorical),
            "when": [when, when, None, when, when],
            "price": [1.5, 2.0, 2.0, None, 1.0],
        }
    )
    path = tmp_path / "log.parquet"
    frame.write_parquet(path, row_group_size=2)
    wanted = config(path, columns=COLUMNS | {"value": "price"})
    assert len(wanted.open().read_tasks()) == 3
    events, rejected = read(wanted)
    assert [(row["row"], row["user_id"], row["item_id"], row["value"]) for row in events] == [
        (1, "1", "a", 1.5),
        (4, "4", "a", None),
    ]
    assert {row["time_ms"] for row in events} == {1_600_000_000_000}
    assert [(row["row"], row["reason"]) for row in rejected] == [
        (2, "missing user_id"),
        (3, "bad timestamp"),
        (5, "missing item_id"),
    ]
    assert json.loads(rejected[0]["raw"])["item"] == "b"


def test_files_of_a_glob_are_read_in_name_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.csv").write_text(f"user,item,when\n{name},x,1600000000\n")
    (tmp_path / "d.csv").write_bytes(b"")
    events, _ = read(config(tmp_path / "*.csv"))
    assert [row["user_id"] for row in events] == ["a", "b", "c"]


def test_identity_follows_the_content_alone(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for folder in ("one", "two"):
        (tmp_path / folder / "log.csv").write_text("user,item,when\nu,x,1600000000\n")
    first, second = (config(tmp_path / folder / "*.csv").open() for folder in ("one", "two"))
    assert first.identity() == second.identity()
    (tmp_path / "two/log.csv").write_text("user,item,when\nv,x,1600000000\n")
    assert first.identity() != second.identity()


def mistake(wanted: Config) -> str:
    with pytest.raises(DataError) as caught:
        read(wanted)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_missing_file_names_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "events.csv").write_text("user,item,when\n")
    text = mistake(config(tmp_path / "event.csv"))
    assert f"There is no file {tmp_path}/event.csv" in text
    assert "events.csv" in text
    assert "No file matches" in mistake(config(tmp_path / "x*.csv"))
    assert "is a folder" in mistake(config(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert "distft data fetch ml-1m" in mistake(config("data/ml-1m/ratings.csv"))
    assert "distft data fetch" not in mistake(config("data/nowhere/ratings.csv")), "there is no such data set"


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"")
    assert "log.csv is empty" in mistake(config(tmp_path / "log.csv"))
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b""))
    assert "log.csv.gz is empty" in mistake(config(tmp_path / "log.csv.gz"))


def test_a_wrong_column_name(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,article,when\nu,a,1600000000\n")
    text = mistake(config(tmp_path / "log.csv", columns=COLUMNS | {"item_id": "artikle"}))
    assert "has no column 'artikle' (for item_id)" in text
    assert "user, article, when" in text
    assert "Did you mean 'article'?" in text
    (tmp_path / "log.csv").write_text("user;item;when\nu;a;1600000000\n")
    assert "separator: ';'" in mistake(config(tmp_path / "log.csv"))
    (tmp_path / "log.csv").write_text("196,242,881250949\n")
    assert "header: [...]" in mistake(config(tmp_path / "log.csv"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"user,item\0,when", "byte 9 is zero"),
        (b"PAR1....", "format: parquet"),
        (gzip.compress(b"user,item,when\n", mtime=0), "gzip data"),  # its name must be the same in every process
        ("user,item,when\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_binary_file(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "log.csv").write_bytes(data)
    assert said in mistake(config(tmp_path / "log.csv"))


def test_a_file_that_this_user_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "log.csv").write_text("user,item,when\nu,a,1600000000\n")
    (tmp_path / "log.parquet").write_text("PAR1")
    monkeypatch.setattr(Storage, "open_input", refuse)
    for name in ("log.csv", "log.parquet"):
        assert f"{name} cannot be read: permission denied" in mistake(config(tmp_path / name))
        with pytest.raises(DataError, match="cannot be read: permission denied"):
            config(tmp_path / name).open().identity()
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    assert "link.csv is there, but is no file that can be opened" in mistake(config(tmp_path / "link.csv"))
    monkeypatch.setattr(Path, "iterdir", refuse)
    assert f"its folder {tmp_path} cannot be listed" in mistake(config(tmp_path / "other.csv"))


def test_a_damaged_page_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": [f"u{n}" for n in range(999)], "item": "a", "when": 1600000000}).write_parquet(
        path, compression="snappy"
    )
    data = bytearray(path.read_bytes())
    data[40:400] = b"\xff" * 360
    path.write_bytes(data)
    assert "log.parquet is damaged" in mistake(config(path))


def test_a_truncated_archive(tmp_path: Path) -> None:
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b"user,item,when\n" + b"u,a,1600000000\n" * 100)[:-12])
    assert "log.csv.gz cannot be read" in mistake(config(tmp_path / "log.csv.gz"))


def test_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_text("user,item,when\n")
    assert "is not a Parquet file" in mistake(config(tmp_path / "log.parquet"))


def test_batches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distft.data.sources.records.BLOCK_BYTES", 1 << 12)
    path = tmp_path / "log.csv"
    lines = [f"u{number},a,16{number:08d}" if number % 10 else f"u{number}" for number in range(2000)]
    path.write_text("user,item,when\n" + "\n".join(lines))
    source = config(path).open()
    batches = list(source.read(source.read_tasks()[0]))
    assert len(batches) > 5
    events = pa.concat_tables([batch.events for batch in batches]).to_pylist()
    assert [(row["row"], row["user_id"]) for row in events] == [
        (number + 1, f"u{number}") for number in range(2000) if number % 10
    ]
    rejected = pa.concat_tables([batch.rejected for batch in batches]).to_pylist()
    assert [(row["row"], row["raw"]) for row in rejected] == [(n + 1, f"u{n}") for n in range(0, 2000, 10)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"user": "u1", "item": "a", "when": 1600000000, "user": "u2"}', "JSON member stands twice"),
        (b'{"user": {"id": 1}, "item": "a", "when": 1600000000}', "nested JSON value"),
        (b'{"user": "u1", "item": ["a", "b"], "when": 1600000000}', "nested JSON value"),
        (b'{"user": true, "item": "a", "when": 1600000000}', "id that is no text or exact number"),
        (b'{"user": 1e400, "item": "a", "when": 1600000000}', "id that is no text or exact number"),
        (b'{"user": 1e30, "item": "a", "when": 1600000000}', "id that is no text or exact number"),
        (b'{"user": "u\xed\xa0\x80", "item": "a", "when": 1600000000}', "undecodable text"),
        (b'{"user": "u\\u0000", "item": "a", "when": 1600000000}', "NUL byte"),
        (b'{"user": "u1", "item": "a", "when": 1600000000', "not a JSON object"),
        (b'{"user": "u1", "item": "a", "when": -1}', "bad timestamp"),
        (b'{"user": "u1", "item": "a", "when": 1600000000, "paid": 1' + 30 * b"0" + b"}", "bad value"),
    ],
)
def test_what_is_wrong_with_a_json_line_costs_that_line(tmp_path: Path, line: bytes, reason: str) -> None:
    good = b'{"user" : "u0", "item": "says \\"item\\":", "when": 1600000000, "paid": 2, "more": {"user": [1]}}'
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join([good] * 3 + [line] + [good]) + b"\n")
    events, rejected = read(config(path, columns=COLUMNS | {"value": "paid"}))
    assert [(row["row"], row["reason"]) for row in rejected] == [(4, reason)]
    assert [row["row"] for row in events] == [1, 2, 3, 5]


def test_a_zero_byte_costs_its_record_and_many_of_them_the_file(tmp_path: Path) -> None:
    lines = [b"user,item,when", *(b"u%d,a,1600000000" % number for number in range(200))]
    path = tmp_path / "log.csv"
    path.write_bytes(b"\n".join([*lines[:50], b"u\0,a,1600000000", *lines[50:]]))
    events, rejected = read(config(path))
    assert [(row["row"], row["reason"]) for row in rejected] == [(50, "NUL byte")]
    assert len(events) == 200
    path.write_bytes(b"\n".join(lines[:50]) + b"\0" * 512 + b"\n".join(lines[50:]))
    with pytest.raises(DataError, match="is zero"):
        read(config(path))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_rows_of_other_values_are_left_out_and_counted(kind: str, tmp_path: Path) -> None:
    rows = [("u1", 1, "UK"), ("u2", 2, "France"), ("u3", 2, None), ("", 1, "France"), ("u5", 3, "Spain")]
    records = [{"user": user, "item": "a", "when": 1_600_000_000, "n": n, "land": land} for user, n, land in rows]
    path = tmp_path / f"log.{kind}"
    if kind == "csv":
        lines = ["user,item,when,n,land", *(",".join(str(value or "") for value in one.values()) for one in records)]
        path.write_text("\n".join(lines) + "\n")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in records))
    else:
        pl.DataFrame(records).write_parquet(path)

    def users(**keys: Any) -> tuple[list[str], list[int], int]:
        wanted = config(path, **keys)
        source = wanted.open()
        left_out = sum(batch.num_left_out for task in source.read_tasks() for batch in source.read(task))
        events, rejected = read(wanted)
        return [row["user_id"] for row in events], [row["row"] for row in rejected], left_out

    assert users(where={"land": "UK"}) == (["u1"], [], 4)
    assert users(where={"land": ["UK", "France"], "n": 1}) == (["u1"], [4], 3)
    assert users(where_not={"land": "France"}) == (["u1", "u3", "u5"], [], 2)
    assert users(where={"land": None}) == (["u3"], [], 4)
    assert users(where={"land": ["France", "Spain"]}, where_not={"n": [2, 3]}) == ([], [4], 4)
    with pytest.raises(DataError, match=r"has no column 'lnd' \(for where.lnd\)|has a key 'lnd'"):
        users(where={"lnd": "UK"})
