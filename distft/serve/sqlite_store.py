"""Histories of users in one SQLite file: the store of a service on one node.

Chosen among SQLite, LMDB and RocksDB by ``benchmarks/history_store.py``, see
docs/decisions/0024-history-store.md. Every change is on the disk when it returns (``synchronous=FULL``), and what is
deleted is overwritten (``secure_delete``), also in the write-ahead log. Surprising choice: a second connection reads,
because in WAL mode a reader never waits for the disk of a writer.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distft.data.encode import RawEvent
from distft.errors import ArtefactError, StorageError
from distft.serve.store import FORMAT, Addition, Pending, line_of, mark_of

FILE = "histories.sqlite"
CACHE_KIB = 65_536
FILL_USERS = 1_000
"""Users of a bundle that are taken over in one transaction."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    user TEXT NOT NULL, time_ms INTEGER NOT NULL, event TEXT NOT NULL, item_id TEXT NOT NULL, query TEXT NOT NULL,
    value REAL, place INTEGER NOT NULL, PRIMARY KEY (user, time_ms, event, item_id, query)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending (id INTEGER PRIMARY KEY AUTOINCREMENT, user TEXT NOT NULL, line TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS logged (user TEXT NOT NULL, segment INTEGER NOT NULL, PRIMARY KEY (user, segment))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erasing (user TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forgotten (mark TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS filled (version TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""
_INSERT = "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?)"
_LATEST = "SELECT item_id, event, time_ms, query, value FROM events WHERE user = ? ORDER BY time_ms, place"
_TRIM = """DELETE FROM events WHERE user = ?1 AND (time_ms, place) <
    (SELECT time_ms, place FROM events WHERE user = ?1 ORDER BY time_ms DESC, place DESC LIMIT 1 OFFSET ?2)"""


class SqliteStore:
    """A ``HistoryStore`` in a folder of this machine, which keeps the latest ``max_events`` of every user."""

    shared = False

    def __init__(self, folder: Path, max_events: int) -> None:
        """Raises StorageError where the folder cannot be written, ArtefactError for a file that is no such store."""
        self._path, self._max_events = folder / FILE, max_events
        self._reading = threading.Lock()
        with _explained(self._path):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            self._writer, self._reader = self._connect(), self._connect()
            self._writer.executescript(_SCHEMA)
            with self._transaction() as db:
                for name, value in (("format", FORMAT), ("salt", secrets.token_bytes(32)), ("segment", 1)):
                    db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
        found = self._meta("format")
        if found != FORMAT:
            raise ArtefactError(f"{self._path} has format {found!r}", f"format {FORMAT}", "Give another --state.")
        self._salt = bytes(self._meta("salt"))

    def add(self, additions: Sequence[Addition]) -> list[int]:
        place = time.time_ns()
        counts: list[int] = []
        with _explained(self._path), self._transaction() as db:
            for addition in additions:
                new: list[tuple[str, str]] = []
                for event in addition.events:
                    place += 1
                    if self._insert(db, addition.user, event, place):
                        new.append((addition.user, line_of(addition.user, event)))
                db.executemany("INSERT INTO pending (user, line) VALUES (?, ?)", new)
                db.execute(_TRIM, (addition.user, self._max_events - 1))
                counts.append(len(new))
        return counts

    def fill(self, version: str, histories: Iterable[Addition]) -> int:
        if self._writer.execute("SELECT 1 FROM filled WHERE version = ?", (version,)).fetchone():
            return 0
        num_new, todo = 0, iter(histories)
        while group := [one for one, _ in zip(todo, range(FILL_USERS), strict=False)]:
            with _explained(self._path), self._transaction() as db:
                for history in group:
                    mark = mark_of(history.user, self._salt)
                    if db.execute("SELECT 1 FROM forgotten WHERE mark = ?", (mark,)).fetchone():
                        continue
                    inserts = (self._insert(db, history.user, event, at) for at, event in enumerate(history.events))
                    num_new += sum(inserts)
                    db.execute(_TRIM, (history.user, self._max_events - 1))
        with _explained(self._path), self._transaction() as db:
            db.execute("INSERT INTO filled VALUES (?)", (version,))
        return num_new

    def events(self, user: str) -> list[RawEvent]:
        with self._reading:
            rows = self._reader.execute(_LATEST, (user,)).fetchall()
        return [RawEvent(item or None, event, at, query or None, value) for item, event, at, query, value in rows]

    def forget(self, user: str) -> int:
        with _explained(self._path), self._transaction() as db:
            dropped = db.execute("DELETE FROM events WHERE user = ?", (user,)).rowcount
            db.execute("DELETE FROM pending WHERE user = ?", (user,))
            db.execute("INSERT OR IGNORE INTO erasing VALUES (?)", (user,))
            db.execute("INSERT OR IGNORE INTO forgotten VALUES (?)", (mark_of(user, self._salt),))
        return dropped

    def pending(self, limit: int) -> Pending:
        rows = self._writer.execute("SELECT user, line FROM pending ORDER BY id LIMIT ?", (limit,)).fetchall()
        return Pending(int(self._meta("segment")), rows)

    def logged(self, written: Pending) -> None:
        with _explained(self._path), self._transaction() as db:
            oldest = "DELETE FROM pending WHERE id IN (SELECT id FROM pending ORDER BY id LIMIT ?)"
            db.execute(oldest, (len(written.lines),))
            db.execute("UPDATE meta SET value = ? WHERE name = 'segment'", (written.segment + 1,))
            users = {(user, written.segment) for user, _ in written.lines}
            db.executemany("INSERT OR IGNORE INTO logged VALUES (?, ?)", sorted(users))

    def segments_of(self, user: str) -> list[int]:
        rows = self._writer.execute("SELECT segment FROM logged WHERE user = ? ORDER BY segment", (user,))
        return [segment for (segment,) in rows.fetchall()]

    def erasing(self) -> list[str]:
        return [user for (user,) in self._writer.execute("SELECT user FROM erasing ORDER BY user").fetchall()]

    def erased(self, user: str) -> None:
        with _explained(self._path), self._transaction() as db:
            db.execute("DELETE FROM logged WHERE user = ?", (user,))
            db.execute("DELETE FROM erasing WHERE user = ?", (user,))
        with self._reading, _explained(self._path):  # a page of the write-ahead log would still hold what was deleted
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        with self._reading:
            self._reader.close()
        self._writer.close()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", f"cache_size=-{CACHE_KIB}"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        return db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield self._writer
        except BaseException:
            self._writer.execute("ROLLBACK")
            raise
        self._writer.execute("COMMIT")

    def _meta(self, name: str) -> Any:
        return self._writer.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0]

    @staticmethod
    def _insert(db: sqlite3.Connection, user: str, event: RawEvent, place: int) -> int:
        """1 if the event is new, 0 if the history holds it."""
        row = (user, event.time_ms, event.event, event.item_id or "", event.query or "", event.value, place)
        return db.execute(_INSERT, row).rowcount


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    remedy = "Check the folder given as --state."
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StorageError(f"{path} cannot be written: {error}", "", remedy) from error
    except sqlite3.DatabaseError as error:
        raise ArtefactError(f"{path} is damaged: {error}", "a file of histories", "Give another --state.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}", "", remedy) from error
