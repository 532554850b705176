"""Histories of users in a Redis server: the store of a service whose cluster has more than one node.

Enters and leaves what ``store.HistoryStore`` says. How durable an accepted event is, the server's own settings decide
(``appendonly yes``). Several services may have it open, so that one can take over from another: what depends on
something that was read is a transaction that is tried again when that has changed meanwhile (``WATCH``). Surprising
choice: the score of an event in its user's sorted set is its time in milliseconds with ten more bits for its place
among those of the same moment, which a double holds exactly until the year 2248.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import redis
from redis.client import Pipeline

from distft.data.encode import RawEvent
from distft.errors import ServingError, UsageError
from distft.serve.store import FORMAT, Addition, Pending, line_of, mark_of

PLACES = 1024
"""Events of one moment whose order is kept."""

TIMEOUT_S = 5.0
FILL_USERS = 200

_T = TypeVar("_T")


class RedisStore:
    """A ``HistoryStore`` under the keys ``distft:<shop>:…`` of a server; keeps ``max_events`` of every user."""

    shared = True

    def __init__(self, url: str, shop: str, max_events: int) -> None:
        """Raises UsageError where there is no such server."""
        self._prefix, self._max_events = f"distft:{shop}:", max_events
        self.place = urlsplit(url).hostname or url  # without the password that an URL may hold
        try:
            self._db = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
            self._db.ping()
        except (redis.RedisError, ValueError) as error:
            what = f"The history store at {self.place} does not answer: {error}"
            raise UsageError(what, "a Redis server", "Check serve.history, and whether the server is up.") from error
        with self._explained():
            fresh = {"format": FORMAT, "salt": secrets.token_hex(32), "segment": 1}
            for name, value in fresh.items():
                self._db.hsetnx(self._key("meta"), name, str(value))
        found = self._meta("format")
        if found != str(FORMAT):
            raise UsageError(f"The histories of {shop} at {self.place} have format {found!r}", f"format {FORMAT}")
        self._salt = bytes.fromhex(self._meta("salt"))

    def add(self, additions: Sequence[Addition]) -> list[int]:
        with self._explained():
            return self._add(additions, queued=True)

    def _add(self, additions: Sequence[Addition], *, queued: bool) -> list[int]:
        """One transaction, begun anew where somebody else has added to one of the histories since it was begun."""

        def adding(pipe: Pipeline) -> list[int]:
            places: dict[tuple[str, int], int] = {}
            seen: set[tuple[str, str]] = set()
            pipe.multi()
            return [self._add_one(pipe, addition, places, seen, queued) for addition in additions]

        return self._changed(adding, *{self._key("history", addition.user) for addition in additions})

    def _add_one(
        self,
        pipe: Pipeline,
        addition: Addition,
        places: dict[tuple[str, int], int],
        seen: set[tuple[str, str]],
        queued: bool,
    ) -> int:
        key, values = self._key("history", addition.user), self._key("values", addition.user)
        members = [_member(event) for event in addition.events]
        known = self._db.zmscore(key, members) if members else []
        num_new = 0
        for event, member, score in zip(addition.events, members, known, strict=True):
            if score is not None or (key, member) in seen:
                continue
            seen.add((key, member))
            num_new += 1
            pipe.zadd(key, {member: self._score(key, int(event.time_ms or 0), places)})
            if event.value is not None:
                pipe.hset(values, member, repr(event.value))
            if queued:
                pipe.rpush(self._key("pending"), json.dumps([addition.user, line_of(addition.user, event)]))
        pipe.zremrangebyrank(key, 0, -self._max_events - 1)
        return num_new

    def _changed(self, change: Callable[[Pipeline], _T], *keys: str) -> _T:
        """What ``change`` gives, once it went through without a change of ``keys`` by anybody else."""
        changed: Any = self._db.transaction
        return cast(_T, changed(change, *keys, value_from_callable=True))

    def _score(self, key: str, time_ms: int, places: dict[tuple[str, int], int]) -> int:
        """The next place of its moment; the first ones may have gone, so that counting what is there would not do."""
        first = time_ms * PLACES
        if (key, time_ms) not in places:
            last: Any = self._db.zrevrangebyscore(key, first + PLACES - 1, first, 0, 1, withscores=True)
            places[key, time_ms] = int(last[0][1]) - first + 1 if last else 0
        place = min(places[key, time_ms], PLACES - 1)
        places[key, time_ms] += 1
        return first + place

    def fill(self, version: str, histories: Iterable[Addition]) -> int:
        with self._explained():
            if self._db.sismember(self._key("filled"), version):
                return 0
            num_new, todo = 0, iter(histories)
            while group := [one for one, _ in zip(todo, range(FILL_USERS), strict=False)]:
                marks = [mark_of(one.user, self._salt) for one in group]
                gone = self._db.smismember(self._key("forgotten"), marks)
                num_new += sum(self._add([one for one, no in zip(group, gone, strict=True) if not no], queued=False))
            self._db.sadd(self._key("filled"), version)
            return num_new

    def events(self, user: str) -> list[RawEvent]:
        with self._explained(), self._db.pipeline(transaction=True) as pipe:
            pipe.zrange(self._key("history", user), 0, -1)
            pipe.hgetall(self._key("values", user))
            members, values = pipe.execute()
        return [_event(member, values.get(member)) for member in members]

    def forget(self, user: str) -> int:
        history = self._key("history", user)

        def forgetting(pipe: Pipeline) -> int:
            # An event enters history and queue together, so the queue can hold no other one of the user's.
            mine = [raw for raw in self._queue(-1) if json.loads(raw)[0] == user]
            num_events = int(self._db.zcard(history))
            pipe.multi()
            pipe.delete(history, self._key("values", user))
            for raw in mine:
                pipe.lrem(self._key("pending"), 0, raw)
            pipe.sadd(self._key("erasing"), user)
            pipe.sadd(self._key("forgotten"), mark_of(user, self._salt))
            return num_events

        with self._explained():
            return self._changed(forgetting, history)

    def pending(self, limit: int) -> Pending:
        with self._explained(), self._db.pipeline(transaction=True) as pipe:
            pipe.hget(self._key("meta"), "segment")
            pipe.smembers(self._key("erasing"))
            if limit:
                pipe.lrange(self._key("pending"), 0, limit - 1)
            segment, erasing, *waiting = pipe.execute()
        lines = [tuple(json.loads(raw)) for raw in (waiting[0] if waiting else [])]
        gone = {user.decode() for user in erasing}
        return Pending(int(segment), [(user, line) for user, line in lines if user not in gone])

    def _queue(self, last: int) -> list[str]:
        waiting: list[Any] = self._db.lrange(self._key("pending"), 0, last)
        return [raw.decode() for raw in waiting]

    def logged(self, written: Pending) -> None:
        meta = self._key("meta")

        def taking_out(pipe: Pipeline) -> None:
            found = int(self._meta("segment"))
            if found != written.segment:
                raise ServingError(
                    f"Segment {written.segment} of the event log was written by another service, which is at {found}"
                )
            pipe.multi()
            for user, line in written.lines:  # the first ones, so that each is found at once
                pipe.lrem(self._key("pending"), 1, json.dumps([user, line]))
            pipe.hset(meta, "segment", str(written.segment + 1))
            for user in {user for user, _ in written.lines}:
                pipe.sadd(self._key("logged", user), str(written.segment))

        with self._explained():
            self._changed(taking_out, meta)

    def segments_of(self, user: str) -> list[int]:
        with self._explained():
            return sorted(int(number) for number in self._db.smembers(self._key("logged", user)))

    def erasing(self) -> list[str]:
        with self._explained():
            users: set[Any] = self._db.smembers(self._key("erasing"))
            return sorted(user.decode() for user in users)

    def erased(self, user: str) -> None:
        with self._explained(), self._db.pipeline(transaction=True) as pipe:
            pipe.delete(self._key("logged", user))
            pipe.srem(self._key("erasing"), user)
            pipe.execute()

    def close(self) -> None:
        self._db.close()

    def _key(self, *names: str) -> str:
        return self._prefix + ":".join(names)

    def _meta(self, name: str) -> str:
        with self._explained():
            value: Any = self._db.hget(self._key("meta"), name)
        return bytes(value).decode()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise ServingError(f"The history store at {self.place} does not answer: {error}") from error


def _member(event: RawEvent) -> str:
    """What makes an event the same one when it is sent again."""
    return json.dumps([event.time_ms, event.event, event.item_id, event.query])


def _event(member: bytes, value: bytes | None) -> RawEvent:
    time_ms, event, item_id, query = json.loads(member)
    return RawEvent(item_id, event, time_ms, query, None if value is None else float(value))
