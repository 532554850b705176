"""One writer per storage: a lock file with a lease that its holder renews.

A holder that was killed stops renewing, so its lock ends by itself; on the same host a dead process is noticed
at once. Surprising choice: a lock never waits. Two runs on one storage are a mistake, and the second is told so.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distft.errors import DistftError, LockedError
from distft.storage import Storage, canonical_json, explained

LOCK = ".lock"
LEASE_S = 60.0


@contextmanager
def locked(storage: Storage, lease_s: float = LEASE_S) -> Iterator[None]:
    """Holds the storage's lock while the block runs. Raises LockedError if another run holds it."""
    storage.make()
    token = uuid.uuid4().hex
    _take(storage, token, lease_s)
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(storage, token, lease_s, stop), name="lease", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        stop.set()
        renewal.join()
        holder = _holder(storage)
        if holder and holder.get("token") == token:
            storage.delete(LOCK)


def _record(token: str, lease_s: float) -> bytes:
    return canonical_json(
        {"token": token, "host": socket.gethostname(), "pid": os.getpid(), "expires_s": time.time() + lease_s}
    )


def _take(storage: Storage, token: str, lease_s: float) -> None:
    for _ in range(2):
        holder = _holder(storage)
        if holder and _alive(holder):
            raise LockedError(
                f"Another run (process {holder['pid']} on {holder['host']}) is writing to {storage}",
                "one run per storage at a time",
                "Wait for it or stop it; or give this run another folder with --storage.",
            )
        if holder is not None:
            storage.delete(LOCK)
        if _create(storage, token, lease_s):
            return
    raise LockedError(f"Another run took {storage} at this moment", "", "Run the command again when it has ended.")


def _create(storage: Storage, token: str, lease_s: float) -> bool:
    """Writes the lock file if there is none; False if somebody else was quicker."""
    if not storage.is_local:
        # Object stores give no exclusive create through this interface: write, wait, and see who is in it.
        storage.write_bytes(LOCK, _record(token, lease_s))
        time.sleep(0.5)
        return (_holder(storage) or {}).get("token") == token
    beside = Path(storage.uri) / f"{LOCK}.{token}.part"
    try:
        with explained(storage.uri):
            beside.write_bytes(_record(token, lease_s))
        os.link(beside, Path(storage.uri) / LOCK)
    except FileExistsError:
        return False
    finally:
        beside.unlink(missing_ok=True)
    return True


def _holder(storage: Storage) -> dict[str, Any] | None:
    """The record in the lock file; None without a file, empty if it holds no record (its lease is over)."""
    try:
        value = json.loads(storage.read_bytes(LOCK))
    except DistftError:
        return None
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _alive(holder: dict[str, Any]) -> bool:
    if holder.get("host") == socket.gethostname():
        try:
            os.kill(int(holder["pid"]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
    return float(holder.get("expires_s", 0)) > time.time()


def _renew(storage: Storage, token: str, lease_s: float, stop: threading.Event) -> None:
    while not stop.wait(lease_s / 4):
        try:
            if (_holder(storage) or {}).get("token") != token:
                return
            storage.write_bytes(LOCK, _record(token, lease_s))
        except DistftError:
            # A storage that cannot be reached for a moment: the lease is four times as long as this pause.
            continue
