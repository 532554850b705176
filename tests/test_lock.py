"""One writer per storage, also after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from distft.errors import LockedError
from distft.lock import LOCK, locked
from distft.storage import Storage, canonical_json

HOLD = """
import sys, time
from distft.lock import locked
from distft.storage import Storage
with locked(Storage(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_by_name_and_left_alone(tmp_path, holder):
    with pytest.raises(LockedError, match=rf"process {holder.pid} .*--storage"), locked(Storage(tmp_path)):
        pass
    assert holder.poll() is None


def test_the_lock_of_a_killed_run_is_taken_over_at_once(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(Storage(tmp_path)):
        assert (tmp_path / LOCK).exists()
    assert os.listdir(tmp_path) == []


def test_a_lease_on_another_host_ends_by_itself(tmp_path):
    record = {"token": "x", "host": "elsewhere", "pid": 1, "expires_s": time.time() + 1.0}
    (tmp_path / LOCK).write_bytes(canonical_json(record))
    with pytest.raises(LockedError, match="elsewhere"), locked(Storage(tmp_path)):
        pass
    time.sleep(1.1)
    with locked(Storage(tmp_path)):
        pass


def test_a_holder_renews_its_lease(tmp_path):
    with locked(Storage(tmp_path), lease_s=0.4):
        first = Storage(tmp_path).read_json(LOCK)["expires_s"]
        time.sleep(0.6)
        assert Storage(tmp_path).read_json(LOCK)["expires_s"] > first
        with pytest.raises(LockedError), locked(Storage(tmp_path)):
            pass


def test_a_damaged_lock_file_does_not_block(tmp_path):
    (tmp_path / LOCK).write_bytes(b"\0garbage")
    with locked(Storage(tmp_path)):
        pass


def test_object_storage_is_locked_too():
    storage = Storage("memory://locked-store")
    with locked(storage), pytest.raises(LockedError), locked(storage):
        pass
    assert not storage.exists(LOCK)
