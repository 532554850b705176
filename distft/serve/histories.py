"""The histories that a service keeps: the single writer of its store and of its event log; it knows no Ray.

Enters: events of users, by the name under which the store knows them; a bundle's histories; the wish to be forgotten.
Leaves: a user's latest events. Surprising choice: requests that arrive while the disk is busy are committed together,
so that waiting for the disk costs a crowd of clients no more than one.

An embedded store has one service. One in Redis may have two for a while, the one that comes and the one that goes, and
only one at a time writes the event log: it holds the log's lock for as long as it writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TypeVar

from distft.data.encode import RawEvent
from distft.data.histories import FOLDER, read_histories
from distft.errors import LockedError
from distft.lock import locked
from distft.serve.eventlog import EventLog
from distft.serve.sqlite_store import SqliteStore
from distft.serve.store import Addition, HistoryStore
from distft.storage import Storage

FLUSH_S = 10.0
"""How long an accepted event waits at most until the log has it; it is safe in the store meanwhile."""

MAX_TOGETHER = 256
"""Requests that one transaction takes."""

EMBEDDED = "embedded"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Keeping:
    """Where histories are kept: ``store`` is "embedded" or the URL of a Redis server; ``shop`` names them there.

    ``state``: the folder (or URI, with Redis) of the event log, and of the embedded store.
    """

    store: str
    state: str
    shop: str
    max_events: int


class Histories:
    """Histories that many clients ask for at once; made and used in one event loop."""

    def __init__(self, keeping: Keeping, flush_s: float = FLUSH_S) -> None:
        """Raises LockedError where another service keeps its histories there, and what the store raises."""
        self._state, self._held, self._flush_s = Storage(keeping.state), ExitStack(), flush_s
        with ExitStack() as undo:
            if keeping.store == EMBEDDED:
                undo.enter_context(locked(self._state))
            self._store: HistoryStore = _open(keeping, self._state)
            undo.callback(self._store.close)
            self._log = EventLog(self._store, self._state)
            self._log_is_behind = self._write_log() is None
            self._held = undo.pop_all()
        # One thread: there is one writer.
        self._thread = ThreadPoolExecutor(1, "history-writer")
        self._waiting: list[tuple[Addition, asyncio.Future[int]]] = []
        self._adding: asyncio.Task[None] | None = None
        self._flushing: asyncio.Task[None] | None = None

    async def fill(self, bundle: Storage, version: str) -> int:
        """Takes over the histories of a bundle, if it brings any; gives the number of new events."""
        if self._log_is_behind:
            self._flush_soon()
        if not any(name.startswith(f"{FOLDER}/") for name in await asyncio.to_thread(bundle.list)):
            return 0
        return await self._write(lambda: self._store.fill(version, _of_bundle(bundle)))

    async def add(self, user: str, events: Sequence[RawEvent]) -> int:
        """How many events were new; they are kept, for good, when it returns."""
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((Addition(user, events), answer))
        if self._adding is None or self._adding.done():
            self._adding = asyncio.create_task(self._add_waiting())
        self._flush_soon()
        return await answer

    async def events(self, user: str) -> list[RawEvent]:
        """The user's latest events, the oldest first."""
        return await asyncio.to_thread(self._store.events, user)

    async def forget(self, user: str) -> int:
        """Drops all that is known of the user, also in the log; gives the number of events of the history."""
        dropped = await self._write(lambda: self._store.forget(user))
        if await self.flush() is None:
            self._flush_soon()
        return dropped

    async def flush(self) -> int | None:
        """Takes who was forgotten out of the log, writes all that waits, and gives the number of events.

        None while another service writes the log.
        """
        return await self._write(self._write_log)

    def _write_log(self) -> int | None:
        with ExitStack() as held:
            if self._store.shared:
                try:
                    held.enter_context(locked(self._state))
                except LockedError:
                    return None  # whoever holds it may write what waits here, and else the next flush does
            self._log.recover()
            return self._log.flush()

    async def close(self) -> None:
        """Writes what waits to the log, and lets go of the store."""
        if self._flushing is not None:
            self._flushing.cancel()
        with suppress(RuntimeError):  # the thread is gone: closed before
            await self.flush()
        self._thread.shutdown()
        self._held.close()

    async def _add_waiting(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
            additions = [addition for addition, _ in group]
            try:
                counts = await self._write(lambda additions=additions: self._store.add(additions))  # type: ignore[misc]
            except Exception as error:  # each of those who wait is told
                for _, answer in group:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), count in zip(group, counts, strict=True):
                if not answer.done():
                    answer.set_result(count)

    def _flush_soon(self) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush_later())

    async def _flush_later(self) -> None:
        await asyncio.sleep(self._flush_s)
        while await self.flush() is None:
            await asyncio.sleep(self._flush_s)

    async def _write(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _open(keeping: Keeping, state: Storage) -> HistoryStore:
    if keeping.store != EMBEDDED:
        from distft.serve.redis_store import RedisStore

        return RedisStore(keeping.store, keeping.shop, keeping.max_events)
    return SqliteStore(state.path, keeping.max_events)


def _of_bundle(bundle: Storage) -> Iterator[Addition]:
    for user, events in read_histories(bundle):
        yield Addition(user, events)
