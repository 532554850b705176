"""Whole or not at all: atomic files, artefacts exchanged in one step, manifests that find every change."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

from distft.errors import ArtefactError, StorageError
from distft.storage import MANIFEST, Storage, canonical_json

SCHEMES = ["local", "memory"]


@pytest.fixture(params=SCHEMES)
def root(request, tmp_path):
    if request.param == "local":
        return Storage(tmp_path / "store")
    storage = Storage(f"memory://{tmp_path.name}")
    storage.delete_tree()
    return storage


def make(root: Storage, text: str, name: str = "thing") -> None:
    with root.replacing(name) as folder:
        folder.write_bytes("a/one.txt", text.encode())
        folder.write_bytes("two.txt", text.encode() * 2)
        folder.write_manifest("thing", {"from": text})


def test_files_are_written_read_listed_and_deleted(root):
    root.write_bytes("b/x.bin", b"123")
    root.write_json("a.json", {"b": 1, "a": [1, 2]})
    assert root.list() == ["a.json", "b/x.bin"]
    assert root.list("b") == ["b/x.bin"]
    assert root.read_bytes("b/x.bin") == b"123"
    assert root.read_bytes("a.json") == b'{\n  "a": [\n    1,\n    2\n  ],\n  "b": 1\n}\n'
    root.delete("b/x.bin")
    root.delete("b/x.bin")
    assert not root.exists("b/x.bin")
    with pytest.raises(StorageError, match="cannot be read"):
        root.read_bytes("b/x.bin")


def test_an_artefact_replaces_another_whole(root):
    make(root, "old")
    make(root, "new")
    manifest = (root / "thing").verified("thing")
    assert manifest.made_from == {"from": "new"}
    assert sorted(manifest.files) == ["a/one.txt", "two.txt"]
    assert (root / "thing").read_bytes("a/one.txt") == b"new"
    assert [name for name in root.list() if ".tmp" in name] == []


def test_a_failure_leaves_the_old_artefact(root):
    make(root, "old")
    with pytest.raises(RuntimeError), root.replacing("thing") as folder:
        folder.write_bytes("a/one.txt", b"half")
        raise RuntimeError
    assert (root / "thing").verified("thing").made_from == {"from": "old"}
    assert [name for name in root.list() if ".tmp" in name] == []


def test_a_task_that_still_writes_does_not_keep_the_folder_of_a_failed_run(tmp_path):
    root = Storage(tmp_path / "store")
    stop, refused = threading.Event(), threading.Event()

    def write(folder: Storage) -> None:
        number = 0  # a new file each time: that is what makes the removal of a folder fail
        while not stop.is_set():
            number += 1
            try:
                (folder.path / f"{number}").write_bytes(b"late")
            except OSError:
                refused.set()

    for _ in range(20):
        with pytest.raises(RuntimeError), root.replacing("thing") as folder:
            writer = threading.Thread(target=write, args=(folder,))
            writer.start()
            time.sleep(0.01)
            raise RuntimeError("the run failed")
        found = not refused.wait(10)
        stop.set()
        writer.join()
        assert not found
        assert list(root.path.iterdir()) == []
        stop.clear()
        refused.clear()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"olD"), "has SHA-256"),
        (lambda path: path.write_bytes(b"ol"), "is 2 bytes long, its manifest says 3"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_any_change_to_a_file_is_found_and_named(tmp_path, damage, message):
    root = Storage(tmp_path)
    make(root, "old")
    damage(tmp_path / "thing" / "a" / "one.txt")
    with pytest.raises(ArtefactError, match=rf"a/one\.txt {message}"):
        (root / "thing").verified("thing")


def test_the_wrong_artefact_and_no_artefact_are_told_apart(root):
    make(root, "old")
    with pytest.raises(ArtefactError, match="holds a thing"):
        (root / "thing").verified("bundle")
    with pytest.raises(ArtefactError, match="There is no bundle"):
        (root / "nothing").verified("bundle")
    (root / "thing").write_bytes(MANIFEST, b"{")
    with pytest.raises(ArtefactError, match="is not JSON"):
        (root / "thing").verified("thing")


def test_a_folder_without_permission_is_a_mistake_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written.*--storage"):
        Storage(tmp_path / "file" / "runs").make()


def test_a_reader_sees_the_old_or_the_new_artefact_at_every_moment(tmp_path):
    root = Storage(tmp_path)
    make(root, "0")
    seen, problems, stop = set(), [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                with open(tmp_path / "thing" / MANIFEST, "rb") as stream:
                    seen.add(stream.read())
            except OSError as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for index in range(1, 40):
        make(root, str(index))
    stop.set()
    reader.join()
    assert not problems
    assert len(seen) > 1


KILLED = """
import sys
from distft.storage import Storage
root = Storage(sys.argv[1])
print("ready", flush=True)
for index in range(10**6):
    with root.replacing("thing") as folder:
        folder.write_bytes("a/one.txt", str(index).encode() * 1000)
        folder.write_bytes("two.txt", str(index).encode() * 1000)
        folder.write_manifest("thing", {"from": index})
"""


def test_sigkill_at_any_moment_leaves_a_whole_artefact(tmp_path):
    root = Storage(tmp_path)
    make(root, "0")
    for attempt in range(8):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline() == b"ready\n"
        time.sleep(0.01 + 0.013 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        (root / "thing").verified("thing")
    root.sweep()
    assert sorted(os.listdir(tmp_path)) == ["thing"]


def test_storage_survives_pickling_and_knows_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage("runs/a")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(storage)).uri == f"{tmp_path}/runs/a"
    assert (storage / "b").path == tmp_path / "runs" / "a" / "b"
    with pytest.raises(StorageError, match="not a local folder"):
        _ = Storage("s3://bucket/x").path


def test_an_unknown_protocol_is_a_mistake():
    with pytest.raises(StorageError, match="cannot be opened"):
        Storage("nosuch://bucket/x").filesystem()


def test_equal_values_are_equal_bytes():
    assert canonical_json({"b": 1, "a": 2}) == canonical_json({"a": 2, "b": 1})
