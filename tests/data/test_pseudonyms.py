"""No artefact holds a user's id where the job asks for pseudonyms, and bad keys are told before anything is read."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from distft.data.parquet import read_table
from distft.data.pseudonyms import (
    MAX_KEY_BYTES,
    WITHHELD,
    Pseudonyms,
    key_digest,
    open_pseudonyms,
    replaced,
    same_pseudonyms,
)  # fmt: skip
from distft.data.shards import split_files
from distft.data.sources.base import EventBatch, FeatureTable, event_schema, rejected_schema
from distft.errors import DataError, UsageError
from distft.job import Job
from distft.sections.data import Pseudonyms as Section
from distft.storage import Storage
from tests.data import logs

KEY = secrets.token_hex(32).encode()


def name_of(user: str) -> str:
    """A user id that no other text of the log holds by chance."""
    return user.replace("u", 'Jürgen "Q" ') if user else ""


def write_shop(folder: Path, key: bytes = KEY) -> None:
    """The small log with telling user ids, unusable rows of all kinds, users' features, and a key."""
    rows = [[name_of(row[0]), *row[1:]] for row in logs.rows()]
    logs.write_csv(folder / "log.csv", rows)
    with (folder / "log.csv").open("ab") as stream:
        stream.write('"Jürgen ""Q"" 5",i1,pv,1600000000,,1,1,more\r\n'.encode())
        stream.write('"Jürgen ""Q"" 5,i1,pv,1600000000,,1,1\r\n'.encode())
        stream.write('Jürgen ""Q"" 5\r\n'.encode())
        stream.write(b'"J\xfcrgen ""Q"" 5",i1,pv,1600000000,,1,1\r\n')
    lines = [
        {"user": name_of("u3"), "item": "i1", "what": "wish", "when": "1600000000", "friend": name_of("u3")},
        {"user": name_of("u4"), "item": "i1", "what": "pv", "when": "yesterday"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '["Jürgen \\"Q\\" 4"]\n'
    (folder / "more.jsonl").write_text(text)
    (folder / "tables").mkdir()
    users = [[name_of(f"u{n}"), "mf"[n % 2]] for n in range(40)]
    logs.write_csv(folder / "tables/users.csv", users, ("id", "sex"))
    with (folder / "tables/users.csv").open("ab") as stream:
        stream.write('"Jürgen ""Q"" 3",'.encode() + b"\xff\r\n")
    (folder / "secret").mkdir()
    (folder / "secret/key").write_bytes(key)


def shop_job(folder: Path, **data: Any) -> Job:
    csv = {"source": "files", "path": f"{folder}/log.csv", "columns": logs.COLUMNS, "event_types": logs.TYPES}
    columns = {"user_id": "user", "item_id": "item", "event": "what", "timestamp": "when"}
    jsonl = {"source": "files", "path": f"{folder}/more.jsonl", "columns": columns, "event_types": logs.TYPES}
    users = {"path": f"{folder}/tables/users.csv", "columns": {"user_id": "id", "sex": "sex"}}
    pseudonyms = {"key_file": f"{folder}/secret/key"}
    return logs.job(folder, **({"events": [csv, jsonl], "users": users, "pseudonyms": pseudonyms} | data))


def texts(path: Path) -> Iterator[str]:
    """Every text in a file of any kind."""
    data = path.read_bytes()
    if data[:4] == b"PAR1":
        tables = [read_table(Storage(path.parent), path.name)]
    elif data[:6] == b"ARROW1":
        reader = pa.ipc.open_file(data)
        tables = [pa.Table.from_batches([reader.get_batch(n)]) for n in range(reader.num_record_batches)]
    else:
        yield data.decode()
        tables = []
    for table in tables:
        yield json.dumps(table.to_pylist(), default=str, ensure_ascii=False)


def test_no_file_of_a_dataset_holds_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shop(tmp_path)
    kept = tmp_path / "kept"
    kept.mkdir()
    delete, delete_tree = Storage.delete, Storage.delete_tree

    def keep_file(self: Storage, name: str) -> None:
        if self.exists(name):
            shutil.copy(self.path / name, kept / name.replace("/", "-"))
        delete(self, name)

    def keep_tree(self: Storage, below: str = "") -> None:
        if below == "work":
            shutil.copytree(self.path / below, kept / "work")
        delete_tree(self, below)

    monkeypatch.setattr(Storage, "delete", keep_file)
    monkeypatch.setattr(Storage, "delete_tree", keep_tree)
    dataset, stats = logs.prepare_here(shop_job(tmp_path), tmp_path / "run")
    work = {path.name.split("-")[0] for path in kept.rglob("*") if path.is_file()}
    assert {"read", "clean", "count", "core", "users"} <= work, "the work files are looked at too"
    files = [path for folder in (dataset.path, kept) for path in folder.rglob("*") if path.is_file()]
    for path in files:
        for text in texts(path):
            assert "rgen" not in text, path
            assert KEY.decode() not in text, path
    assert stats["rejected"]["total"] > 20
    rejected = pa.concat_tables([read_table(dataset, name) for name in dataset.list("rejected")]).to_pylist()
    mine = hmac.new(KEY, name_of("u3").encode(), hashlib.sha256).hexdigest()
    (twice,) = [row for row in rejected if row["user_id"] == mine and row["file"].endswith("jsonl")]
    assert twice["raw"].count(mine) == 2
    assert {row["raw"] for row in rejected if row["user_id"] is None} == {WITHHELD}
    assert sum(row["user_id"] is not None for row in rejected) > 15
    (again,) = read_table(dataset, "rejected_features/users.parquet").to_pylist()
    assert (again["reason"], again["user_id"], again["raw"]) == ("undecodable text", mine, f'"{mine}",\ufffd')


def test_pseudonyms_change_nothing_but_names(tmp_path: Path) -> None:
    write_shop(tmp_path)
    dataset, stats = logs.prepare_here(shop_job(tmp_path), tmp_path / "run")
    plain, expected = logs.prepare_here(shop_job(tmp_path, pseudonyms=None), tmp_path / "plain")
    assert stats["rejected"].pop("examples") != expected["rejected"].pop("examples"), "they show rows"
    assert stats == expected

    def rows(of: Storage) -> dict[str, tuple[Any, ...]]:
        found = {}
        manifest = of.verified("dataset")
        users = read_table(of, "users.parquet")["sex"].to_pylist()
        for name in split_files(manifest, "train"):
            for row in read_table(of, name).to_pylist():
                found[row["user_id"]] = (row["item_row"], row["event"], row["time_ms"], users[row["user_row"]])
        return found

    before, after = rows(plain), rows(dataset)
    assert len(before) > 30
    secret = {hmac.new(KEY, user.encode(), "sha256").hexdigest(): row for user, row in before.items()}
    assert after == secret
    info = dataset.verified("dataset").info
    assert info["pseudonyms"] == Pseudonyms(KEY).digest
    assert "pseudonyms" not in plain.verified("dataset").info


def test_messages_quote_no_row(tmp_path: Path) -> None:
    write_shop(tmp_path)
    with pytest.raises(DataError, match="most of them") as caught:
        logs.prepare_here(shop_job(tmp_path, users=None, clean={"max_rejected_share": 0}), tmp_path / "run")
    assert "rgen" not in str(caught.value)
    assert "log.csv:" in str(caught.value)
    (tmp_path / "log.csv").write_text("Jürgen 5,i1\nJürgen 5,i2\n")
    columns = {"user_id": "user", "item_id": "item", "timestamp": "when"}
    events = [{"source": "files", "path": f"{tmp_path}/log.csv", "columns": columns, "event": "purchase"}]
    with pytest.raises(DataError, match=r"has no column 'user' .*data\.pseudonyms is set") as caught:
        logs.prepare_here(shop_job(tmp_path, events=events), tmp_path / "run")
    assert "rgen" not in str(caught.value)
    (tmp_path / "tables/users.csv").write_text("id,sex\nJürgen 5\nJürgen 6\nJürgen 7,m\n")
    with pytest.raises(DataError) as caught:
        logs.prepare_here(shop_job(tmp_path, events=shop_job(tmp_path).data.events[1:]), tmp_path / "run")
    assert "rgen" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty. Expected at least 32 bytes"),
        (b" \n", "is empty"),
        (b"k", "holds a key of 1 byte. "),
        (b"0123456789abcdef" + b"\n" * 40, "holds a key of 16 bytes"),
        (b"abcabc1" * 8, "only 4 different ones"),
        (os.urandom(MAX_KEY_BYTES + 1), "holds more than 4096 bytes"),
    ],
)
def test_a_key_that_is_none_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        open_pseudonyms(Section(key_file=str(tmp_path / "key")))
    assert told in str(caught.value)


def test_a_key_that_is_not_there_or_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    with pytest.raises(UsageError, match=r"there is no file .*openssl rand"):
        open_pseudonyms(Section(key_file=str(tmp_path / "nothing")))
    with pytest.raises(UsageError, match="cannot be read"):
        open_pseudonyms(Section(key_file=str(tmp_path)))
    section = Section(key_file=str(tmp_path / "key"))
    with pytest.raises(UsageError, match="lies in the job's own storage"):
        key_digest(section, Storage(tmp_path))
    digest = key_digest(section, Storage(tmp_path / "run"))
    assert same_pseudonyms(section, digest).digest == digest
    with pytest.raises(UsageError, match="another key than it did where this run was started"):
        same_pseudonyms(section, "0" * 64)
    (tmp_path / "key").write_bytes(KEY + b"\r\n")
    assert key_digest(section, Storage(tmp_path / "run")) == digest
    (tmp_path / "key").write_bytes(KEY[::-1])
    assert key_digest(section, Storage(tmp_path / "run")) != digest


def test_a_word_is_replaced_where_it_stands_alone() -> None:
    assert replaced("u1,u10,u1 xu1,_u1", "u1", "P") == ("P,u10,P xu1,_P", 3)
    assert replaced('"a""b",1', 'a"b', "P") == ('"P",1', 1)
    assert replaced('{"u": "a\\"\\u00fc"}', 'a"ü', "P") == ('{"u": "P"}', 1)
    assert replaced("17850.0,5", "17850", "P") == ("P.0,5", 1)
    assert replaced("nothing", "u1", "P") == ("nothing", 0)


def test_more_users_than_are_remembered_and_empty_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distft.data.pseudonyms.MAX_REMEMBERED", 2)
    pseudonyms = Pseudonyms(KEY)
    for names in (["0", "1"], ["1", "1", "2"], ["0", "3", "4"], [], ["3", "0"]):
        table = FeatureTable(pa.table({"user_id": pa.array(names, pa.string())}), "user_id")
        expected = [hmac.new(KEY, name.encode(), "sha256").hexdigest() for name in names]
        assert pseudonyms.features(table).table["user_id"].to_pylist() == expected
    empty = EventBatch(event_schema().empty_table(), rejected_schema().empty_table())
    done = pseudonyms.batch(empty)
    assert (done.events.schema, done.rejected.schema) == (event_schema(), rejected_schema())
