"""Which embedded store for histories: SQLite, LMDB or RocksDB? Reads, durable writes, and what forgetting leaves.

Needs, beside distft: pip install lmdb rocksdict. The same events in each, one entry an event, ordered by user and time;
every write is on the disk when it returns. Prints a table, and writes benchmarks/results/history_store.json.
"""

from __future__ import annotations

import json
import random
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
from rocksdict import Options, Rdict, WriteBatch, WriteOptions

from distft.data.encode import RawEvent
from distft.serve.sqlite_store import SqliteStore
from distft.serve.store import Addition

NUM_USERS, NUM_EVENTS = 20_000, 50
RESULT = Path(__file__).parent / "results" / "history_store.json"


def event(user: int, place: int) -> RawEvent:
    return RawEvent(f"item{(user * 31 + place) % 5_000}", "view", 1_700_000_000_000 + place * 60_000 + user)


def name(user: int) -> str:
    return f"user-{user:06}"


def key(user: int, one: RawEvent) -> bytes:
    return name(user).encode() + b"\0" + struct.pack(">q", one.time_ms or 0) + f"{one.event}\0{one.item_id}".encode()


def value(one: RawEvent) -> bytes:
    return json.dumps([one.item_id, one.event, one.time_ms, one.query, one.value]).encode()


class Sqlite:
    """distft's own."""

    def __init__(self, folder: Path) -> None:
        self.store = SqliteStore(folder, 1_000)

    def fill(self) -> None:
        every = ([event(user, place) for place in range(NUM_EVENTS)] for user in range(NUM_USERS))
        self.store.fill("benchmark", (Addition(name(user), events) for user, events in enumerate(every)))

    def read(self, user: int) -> list[RawEvent]:
        return self.store.events(name(user))

    def append(self, events: list[tuple[int, RawEvent]]) -> None:
        self.store.add([Addition(name(user), [one]) for user, one in events])

    def forget(self, user: int) -> None:
        self.store.forget(name(user))
        self.store.erased(name(user))

    def close(self) -> None:
        self.store.close()


class Lmdb:
    """One key an event; a transaction is synchronous by default."""

    def __init__(self, folder: Path) -> None:
        self.env = lmdb.open(str(folder), map_size=1 << 32)

    def fill(self) -> None:
        for first in range(0, NUM_USERS, 1_000):
            self.append([(u, event(u, p)) for u in range(first, first + 1_000) for p in range(NUM_EVENTS)])

    def read(self, user: int) -> list[RawEvent]:
        with self.env.begin() as transaction:
            return [RawEvent(*json.loads(one)) for _, one in self._range(transaction.cursor(), user)]

    def append(self, events: list[tuple[int, RawEvent]]) -> None:
        with self.env.begin(write=True) as transaction:
            for user, one in events:
                transaction.put(key(user, one), value(one), overwrite=False)

    def forget(self, user: int) -> None:
        with self.env.begin(write=True) as transaction:
            for found in [one for one, _ in self._range(transaction.cursor(), user)]:
                transaction.delete(found)

    def close(self) -> None:
        self.env.close()

    @staticmethod
    def _range(cursor: Any, user: int) -> Iterator[tuple[bytes, bytes]]:
        prefix = name(user).encode() + b"\0"
        if cursor.set_range(prefix):
            for found, one in cursor:
                if not found.startswith(prefix):
                    return
                yield found, one


class Rocks:
    """One key an event; synchronous write batches."""

    def __init__(self, folder: Path) -> None:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        self.db, self.durable = Rdict(str(folder), options), WriteOptions()
        self.durable.sync = True

    def fill(self) -> None:
        for first in range(0, NUM_USERS, 1_000):
            self.append([(u, event(u, p)) for u in range(first, first + 1_000) for p in range(NUM_EVENTS)])

    def read(self, user: int) -> list[RawEvent]:
        prefix, found = name(user).encode() + b"\0", []
        place = self.db.iter()
        place.seek(prefix)
        while place.valid() and place.key().startswith(prefix):
            found.append(RawEvent(*json.loads(place.value())))
            place.next()
        return found

    def append(self, events: list[tuple[int, RawEvent]]) -> None:
        batch = WriteBatch(raw_mode=True)
        for user, one in events:
            if key(user, one) not in self.db:
                batch.put(key(user, one), value(one))
        self.db.write(batch, self.durable)

    def forget(self, user: int) -> None:
        prefix = name(user).encode()
        self.db.delete_range(prefix + b"\0", prefix + b"\1", self.durable)

    def close(self) -> None:
        self.db.flush()
        self.db.close()


def timed(work: Callable[[Any], object], inputs: list[Any]) -> dict[str, float]:
    """Microseconds of the median and of the slowest hundredth."""
    took = []
    for one in inputs:
        began = time.perf_counter()
        work(one)
        took.append((time.perf_counter() - began) * 1e6)
    took.sort()
    return {"p50_us": round(took[len(took) // 2], 1), "p99_us": round(took[int(len(took) * 0.99)], 1)}


def measure(kind: Callable[[Path], Any], folder: Path) -> dict[str, Any]:
    draw, store = random.Random(1), kind(folder)
    began = time.perf_counter()
    store.fill()
    result: dict[str, Any] = {"fill_s": round(time.perf_counter() - began, 1)}
    users = [draw.randrange(NUM_USERS) for _ in range(5_000)]
    assert len(store.read(users[0])) == NUM_EVENTS
    result["read"] = timed(store.read, users)
    fresh = iter([(draw.randrange(NUM_USERS), event(0, 1_000_000 + place)) for place in range(20_000)])
    result["append_1"] = timed(store.append, [[next(fresh)] for _ in range(500)])
    result["append_64"] = timed(store.append, [[next(fresh) for _ in range(64)] for _ in range(200)])
    gone = list(range(0, NUM_USERS, 200))
    result["forget"] = timed(store.forget, gone)
    store.close()
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    left = [user for user in gone if any(name(user).encode() in data for data in files)]
    result["forgotten_users_found_in_files"] = f"{len(left)} of {len(gone)}"
    result["megabytes"] = round(sum(map(len, files)) / 1e6, 1)
    return result


def main() -> None:
    results = {}
    for kind in (Sqlite, Lmdb, Rocks):
        with tempfile.TemporaryDirectory(prefix="history-store-") as folder:
            results[kind.__name__.lower()] = measure(kind, Path(folder))
            print(kind.__name__, json.dumps(results[kind.__name__.lower()]))
    RESULT.write_text(json.dumps({"users": NUM_USERS, "events_each": NUM_EVENTS, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
