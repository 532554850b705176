"""SIGKILL in the midst of batch scoring, and the same command again: no user twice, none missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distft.data.histories import SCHEMA
from distft.data.parquet import write_table
from distft.recommend.recommend import PART_USERS
from distft.storage import Storage

pytestmark = pytest.mark.proof

NUM_FILES, USERS_A_FILE, EVENTS = 3, 90_000, 12


def write_many(folder: Storage) -> None:
    """Many users, so that the work takes longer than finding a moment in it."""
    folder.make()
    rng = np.random.default_rng(0)
    offsets = pa.array(np.arange(0, USERS_A_FILE * EVENTS + 1, EVENTS, dtype=np.int32))
    size = USERS_A_FILE * EVENTS
    for number in range(NUM_FILES):
        ids = pa.array([f"i{index}" for index in range(60)]).take(pa.array(rng.integers(0, 60, size)))
        columns = [
            pa.array([f"u{number}-{user}" for user in range(USERS_A_FILE)]),
            pa.ListArray.from_arrays(offsets, ids),
            pa.ListArray.from_arrays(offsets, pa.array(["view", "cart"]).take(pa.array(rng.integers(0, 2, size)))),
            pa.ListArray.from_arrays(offsets, pa.array(np.arange(size))),
            pa.ListArray.from_arrays(offsets, pa.nulls(size, pa.string())),
            pa.ListArray.from_arrays(offsets, pa.nulls(size, pa.float32())),
        ]
        write_table(folder, f"file-{number}.parquet", pa.table(columns, schema=SCHEMA))


def start(bundle: Storage, folder: Path) -> subprocess.Popen[bytes]:
    words = ["recommend", bundle.uri, "--histories", str(folder / "histories"), "--out", str(folder / "out")]
    return subprocess.Popen([sys.executable, "-m", "distft", *words])


def test_killed_and_started_again_it_has_every_user_once(bundle: Storage, tmp_path: Path) -> None:
    write_many(Storage(tmp_path / "histories"))
    lists = tmp_path / "out" / "lists"
    num_parts = NUM_FILES * -(-USERS_A_FILE // PART_USERS)
    for least in (1, 5):
        process = start(bundle, tmp_path)
        deadline_s = time.monotonic() + 120
        while len(list(lists.glob("part-*.parquet"))) < least:
            assert process.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive, "Ray's processes end with the command"
        assert len(list(lists.glob("part-*.parquet"))) < num_parts, "it was killed too late to prove anything"
        assert not (lists / "manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in lists.glob("part-*.parquet")}
    assert start(bundle, tmp_path).wait(timeout=240) == 0
    Storage(lists).verified("recommendations")
    assert {name: (lists / name).stat().st_mtime_ns for name in kept} == kept, "finished parts are not done again"
    users = [
        user for path in lists.glob("*.parquet") for user in pq.read_table(path, columns=["user_id"])[0].to_pylist()
    ]
    assert len(users) == NUM_FILES * USERS_A_FILE == len(set(users))
    assert not list((tmp_path / "out").rglob("*.part"))
