from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from distft.data.catalogue import CATALOGUE, CatalogueEntry, DataFile
from distft.data.fetch import fetch
from distft.errors import DataError, StorageError, UsageError

EVENTS = b"1 10\n1 11\n2 10\n" * 50_000
NOTES = b"read me\n"
LOG = b"user,item\n" + EVENTS.replace(b" ", b",")


class Shelf(BaseHTTPRequestHandler):
    """Serves ``server.shelf``: path to bytes; a bytearray is announced whole, half of it is sent, then it stalls."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.shelf.get(self.path)
        if content is None:
            self.send_error(404)
        elif isinstance(content, int):
            self.send_error(content)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if isinstance(content, bytearray):
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.server.half_sent.set()
                self.server.go_on.wait(30)
            else:
                self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Shelf)
        self.shelf: dict[str, bytes | bytearray | int] = {}
        self.asked: list[str] = []
        self.half_sent, self.go_on = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


def file(name: str, content: bytes, url: str = "", member: str = "", optional: bool = False) -> DataFile:
    return DataFile(name, hashlib.sha256(content).hexdigest(), len(content), url, member, optional)


def known(monkeypatch: pytest.MonkeyPatch, *files: DataFile) -> str:
    """Puts a data set called "tiny" of these files into the catalogue."""
    entry = CatalogueEntry("tiny", "A tiny log", "https://tiny.example/", "Free.", files, "Ask for it.")
    monkeypatch.setitem(CATALOGUE, "tiny", entry)
    return "tiny"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_copied_and_a_second_fetch_brings_nothing(tmp_path, monkeypatch):
    name = known(monkeypatch, file("events.txt", EVENTS), file("notes.txt", NOTES, optional=True))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "events.txt").write_bytes(EVENTS)
    steps = []
    fetched = fetch(name, tmp_path / "to", str(tmp_path / "copy"), lambda *step: steps.append(step))
    assert (fetched.brought, fetched.present, fetched.absent) == (("events.txt",), (), ("notes.txt",))
    assert (tmp_path / "to" / "events.txt").read_bytes() == EVENTS
    assert names(tmp_path / "to") == ["events.txt"]
    assert [step[1] for step in steps] == sorted(step[1] for step in steps) and len(steps) > 1
    assert steps[-1] == ("bytes of events.txt", len(EVENTS), len(EVENTS))
    assert "Free." in fetched.text() and "https://tiny.example/" in fetched.text()

    again = fetch(name, tmp_path / "to")
    assert (again.brought, again.present) == ((), ("events.txt",))


def test_without_a_folder_it_goes_where_the_shipped_jobs_read(tmp_path, monkeypatch):
    name = known(monkeypatch, file("events.txt", EVENTS))
    (tmp_path / "events.txt").write_bytes(EVENTS)
    monkeypatch.chdir(tmp_path)
    fetch(name, source=".")
    assert (tmp_path / "data" / "tiny" / "events.txt").read_bytes() == EVENTS


def test_a_mirror_is_asked_for_each_file_under_its_own_name(tmp_path, monkeypatch, server):
    name = known(monkeypatch, file("log 1.csv", EVENTS), file("notes.txt", NOTES, optional=True))
    server.shelf["/pub/log%201.csv"] = EVENTS
    fetched = fetch(name, tmp_path, server.url + "/pub/")
    assert fetched.brought == ("log 1.csv",) and fetched.absent == ("notes.txt",)
    assert (tmp_path / "log 1.csv").read_bytes() == EVENTS
    assert server.asked == ["/pub/log%201.csv", "/pub/notes.txt"]


def test_a_compressed_file_is_known_by_what_it_holds(tmp_path, monkeypatch):
    name = known(monkeypatch, file("log.csv.gz", LOG))
    (tmp_path / "copy").mkdir()
    for level in (1, 9):
        (tmp_path / "copy" / "log.csv.gz").write_bytes(gzip.compress(LOG, level))
        assert fetch(name, tmp_path / str(level), str(tmp_path / "copy")).brought == ("log.csv.gz",)
    whole = (tmp_path / "copy" / "log.csv.gz").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"<html>", whole[:60] + bytes([whole[60] ^ 1]) + whole[61:]):
        (tmp_path / "copy" / "log.csv.gz").write_bytes(damaged)
        with pytest.raises(DataError, match="not the file of the catalogue"):
            fetch(name, tmp_path / "to", str(tmp_path / "copy"))
        assert not (tmp_path / "to").exists()


def test_the_home_s_archive_is_downloaded_once_for_all_its_members(tmp_path, monkeypatch, server):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("set/ratings.dat", EVENTS)
        members.writestr("set/README", NOTES)
        members.writestr("../escape.txt", NOTES)
    server.shelf.update({"/set.zip": archive.getvalue(), "/log.csv": LOG})
    url = server.url + "/set.zip"
    name = known(
        monkeypatch,
        file("ratings.dat", EVENTS, url, "ratings.dat"),
        file("README.txt", NOTES, url, "README"),
        file("log.csv", LOG, server.url + "/log.csv"),
        file("extra.txt", NOTES, optional=True),
    )
    fetched = fetch(name, tmp_path)
    assert fetched.brought == ("ratings.dat", "README.txt", "log.csv") and fetched.absent == ("extra.txt",)
    assert server.asked == ["/set.zip", "/log.csv"]
    assert names(tmp_path) == ["README.txt", "log.csv", "ratings.dat"]
    assert (tmp_path / "ratings.dat").read_bytes() == EVENTS


@pytest.mark.parametrize("sent", [b"<html>not an archive</html>", b"empty"])
def test_an_archive_that_is_damaged_or_lacks_the_file_is_told(tmp_path, monkeypatch, server, sent):
    if sent == b"empty":
        archive = io.BytesIO()
        zipfile.ZipFile(archive, "w").close()
        sent = archive.getvalue()
    server.shelf["/set.zip"] = sent
    name = known(monkeypatch, file("ratings.dat", EVENTS, server.url + "/set.zip", "ratings.dat"))
    with pytest.raises(DataError, match=r"set\.zip sent (is not a whole zip archive|holds no ratings\.dat)"):
        fetch(name, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_workbook_becomes_a_compressed_csv(tmp_path, monkeypatch, server):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl (distft[excel]) is not installed")
    workbook, archive = openpyxl.Workbook(), io.BytesIO()
    workbook.active.append(["InvoiceNo", "Description", "CustomerID"])
    workbook.active.append(["C5", 'SIGN, "HOME"', 17850])
    workbook.active.append([6, None, None])
    workbook.save(tmp_path / "book.xlsx")
    with zipfile.ZipFile(archive, "w") as members:
        members.write(tmp_path / "book.xlsx", "The Log.xlsx")
    server.shelf["/log.zip"] = archive.getvalue()
    wanted = b'InvoiceNo,Description,CustomerID\nC5,"SIGN, ""HOME""",17850.0\n6,,\n'
    name = known(monkeypatch, file("log.csv.gz", wanted, server.url + "/log.zip", "The Log.xlsx"))
    fetch(name, tmp_path / "to")
    assert gzip.decompress((tmp_path / "to" / "log.csv.gz").read_bytes()) == wanted


def test_a_missing_workbook_reader_is_told_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UsageError, match=r"openpyxl.*distft\[excel\]"):
        fetch("online-retail", tmp_path)


def test_damage_names_both_hashes_and_leaves_what_was_there(tmp_path, monkeypatch, server):
    name = known(monkeypatch, file("events.txt", EVENTS))
    damaged = EVENTS[:-3] + b"9" + EVENTS[-2:]
    server.shelf["/events.txt"] = damaged
    (tmp_path / "events.txt").write_bytes(b"mine")
    with pytest.raises(DataError) as caught:
        fetch(name, tmp_path, server.url)
    assert hashlib.sha256(damaged).hexdigest() in str(caught.value)
    assert hashlib.sha256(EVENTS).hexdigest() in str(caught.value)
    assert (tmp_path / "events.txt").read_bytes() == b"mine" and names(tmp_path) == ["events.txt"]


def test_a_file_with_other_content_is_moved_away_not_lost(tmp_path, monkeypatch, server):
    name = known(monkeypatch, file("events.txt", EVENTS))
    server.shelf["/events.txt"] = EVENTS
    (tmp_path / "events.txt").write_bytes(b"mine")
    fetched = fetch(name, tmp_path, server.url)
    assert fetched.moved == ("events.txt",) and "events.txt.old" in fetched.text()
    assert (tmp_path / "events.txt.old").read_bytes() == b"mine"
    assert (tmp_path / "events.txt").read_bytes() == EVENTS


def test_a_killed_fetch_leaves_nothing_that_is_taken_for_the_data(tmp_path, monkeypatch, server):
    whole = CATALOGUE["ml-100k"].files[0]
    server.shelf[f"/{whole.name}"] = bytearray(whole.num_bytes)
    script = "import sys; from distft.data.fetch import fetch; fetch('ml-100k', sys.argv[1], sys.argv[2])"
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path), server.url]) as process:
        assert server.half_sent.wait(30)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / whole.name).exists()

    name = known(monkeypatch, file("events.txt", EVENTS))
    server.shelf["/events.txt"] = EVENTS
    fetch(name, tmp_path, server.url)
    assert names(tmp_path) == ["events.txt"]


def test_a_connection_that_breaks_is_told(tmp_path, monkeypatch, server):
    name = known(monkeypatch, file("events.txt", EVENTS))
    server.shelf["/events.txt"] = bytearray(EVENTS)
    server.go_on.set()
    with pytest.raises(StorageError, match=rf"ended after {len(EVENTS) // 2:,} of {len(EVENTS):,} bytes"):
        fetch(name, tmp_path, server.url)
    assert names(tmp_path) == []


def test_a_silent_server_is_given_up(tmp_path, monkeypatch, server):
    monkeypatch.setattr("distft.data.origins.TIMEOUT_S", 0.2)
    name = known(monkeypatch, file("events.txt", EVENTS))
    server.shelf["/events.txt"] = bytearray(EVENTS)
    with pytest.raises(StorageError, match=r"cannot be downloaded: .*timed out"):
        fetch(name, tmp_path, server.url)
    assert names(tmp_path) == []


def test_no_network_and_a_failing_server_are_told_with_what_to_do(tmp_path, monkeypatch, server):
    name = known(monkeypatch, file("events.txt", EVENTS, "http://nowhere.invalid/events.txt"))
    with pytest.raises(StorageError, match=r"http://nowhere\.invalid/events\.txt cannot be downloaded.*--from"):
        fetch(name, tmp_path)
    server.shelf["/events.txt"] = 503
    with pytest.raises(StorageError, match=r"answered 503.*--from"):
        fetch(name, tmp_path, server.url)


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch, server):
    name = known(monkeypatch, file("events.txt", EVENTS, server.url + "/gone.txt"))
    with pytest.raises(DataError, match=rf"{re.escape(server.url)} has no file events\.txt"):
        fetch(name, tmp_path, server.url)
    with pytest.raises(DataError, match=r"gone\.txt answered 404"):
        fetch(name, tmp_path)
    with pytest.raises(DataError, match=r"has no file events\.txt"):
        fetch(name, tmp_path / "to", str(tmp_path))


@pytest.mark.parametrize("source", ["s3://bucket/set", "ftp://host/set"])
def test_other_addresses_are_refused(tmp_path, source):
    with pytest.raises(UsageError, match="a folder, or an http"):
        fetch("ml-100k", tmp_path, source)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StorageError, match="nowhere is not a folder"):
        fetch("ml-100k", tmp_path, str(tmp_path / "nowhere"))


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(DataError, match=r"'ml_1M'.*did you mean 'ml-1m'.*online-retail"):
        fetch("ml_1M", tmp_path)


@pytest.mark.parametrize("name", ["jdata", "taobao"])
def test_a_set_behind_a_login_says_where_it_is_and_what_to_do(tmp_path, name):
    with pytest.raises(DataError) as caught:
        fetch(name, tmp_path)
    assert CATALOGUE[name].home in str(caught.value) and f"distft data fetch {name} --from" in str(caught.value)


def test_a_target_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    name = known(monkeypatch, file("events.txt", EVENTS))
    (tmp_path / "events.txt").write_bytes(EVENTS)
    with pytest.raises(StorageError, match="cannot be written"):
        fetch(name, tmp_path / "events.txt", str(tmp_path))


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=list(CATALOGUE))
def test_every_entry_of_the_catalogue_is_complete(entry):
    assert entry.title and entry.licence and entry.home.startswith("https://")
    assert len({file.name for file in entry.files}) == len(entry.files)
    for file in entry.files:
        assert re.fullmatch("[0-9a-f]{64}", file.sha256) and file.num_bytes > 0
        assert file.url.startswith("https://") or entry.how or file.optional
        before = [other.name for other in entry.files[: entry.files.index(file)]]
        assert set(file.made_from) <= set(before), "what a file is made of is brought before it"
        assert bool(file.member) == file.url.endswith(".zip")


GRAPH = {
    "entity2id": b"entity\tid\ttype\n0\t0\t0\n501\t2\titem\n502\t1\titem\n7\t3\tbrand\n8\t4\tbrand\n9\t5\tshop\n",
    "relation2id": b"relation\tid\nitem-brand\t1\nitem-shop\t2\nsold-with\t3\n",
    "kg2id": b"head\ttail\trelation\n2\t3\t1\n2\t4\t1\n1\t5\t2\n1\t2\t3\n",
}
ITEMS = b"item_id,brand,shop\n502,,9\n501,7,\n"


def test_a_knowledge_graph_becomes_a_table_of_items_beside_it(tmp_path, monkeypatch):
    parts = [file(name, content) for name, content in GRAPH.items()]
    made = dataclasses.replace(file("items.csv", ITEMS), made_from=tuple(GRAPH))
    name = known(monkeypatch, *parts, made)
    (tmp_path / "copy").mkdir()
    for part, content in GRAPH.items():
        (tmp_path / "copy" / part).write_bytes(content)
    fetched = fetch(name, tmp_path / "to", str(tmp_path / "copy"))
    assert fetched.brought == (*GRAPH, "items.csv")
    assert (tmp_path / "to" / "items.csv").read_bytes() == ITEMS

    (tmp_path / "to" / "items.csv").unlink()
    assert fetch(name, tmp_path / "to").brought == ("items.csv",), "made again of what is there, without asking anybody"
    (tmp_path / "to" / "kg2id").unlink()
    with pytest.raises(DataError, match="a folder or mirror that holds entity2id, relation2id, kg2id") as caught:
        fetch(name, tmp_path / "to")
    assert "items.csv" not in str(caught.value), "nobody has to bring what is made"


def test_a_failed_fetch_leaves_no_folder_that_was_not_there(tmp_path, monkeypatch):
    name = known(monkeypatch, file("events.txt", EVENTS))
    (tmp_path / "copy").mkdir()
    (tmp_path / "there").mkdir()
    for to in ("data/tiny", "there"):
        with pytest.raises(DataError, match=r"has no file events\.txt"):
            fetch(name, tmp_path / to, str(tmp_path / "copy"))
    assert names(tmp_path) == ["copy", "there"]
