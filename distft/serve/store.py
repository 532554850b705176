"""What a store of users' histories does; ``sqlite_store`` and ``redis_store`` are two.

Enters: events of users in the shop's own words. Leaves: each user's latest events, and the lines that are still to be
written to the event log. Surprising choice: an event enters the history and the queue of the log in one transaction,
and leaves the queue together with the number of the segment that it went into, so that whatever is killed at whatever
moment, every accepted event ends in the log exactly once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from distft.data.encode import RawEvent

FORMAT = 1


@dataclass(frozen=True)
class Addition:
    """Events of one user that a client sent; each has a time."""

    user: str
    events: Sequence[RawEvent]


@dataclass(frozen=True)
class Pending:
    """Events that are in no segment of the log yet: the segment's number, and (user, line) of each."""

    segment: int
    lines: list[tuple[str, str]]


class HistoryStore(Protocol):
    """Histories of users; ``events`` may be called from any thread while another one writes.

    Only who writes the log calls ``pending``, ``logged``, ``erasing`` and ``erased``, and there is one such at a time.
    """

    shared: bool
    """True if several processes may have it open at a time, as two services do while one takes over from the other."""

    def add(self, additions: Sequence[Addition]) -> list[int]:
        """How many events of each addition were new; all are there, for good, when it returns, or none is."""

    def fill(self, version: str, histories: Iterable[Addition]) -> int:
        """Takes over the histories of a bundle, once a version; gives the number of events that were new.

        They do not go into the log, and users who were forgotten stay forgotten.
        """

    def events(self, user: str) -> list[RawEvent]:
        """The user's latest events, the oldest first; those of one moment in the order in which they came."""

    def forget(self, user: str) -> int:
        """Drops the user, and gives the number of events dropped; ``erasing`` lists them until ``erased``."""

    def pending(self, limit: int) -> Pending:
        """The oldest events that the log has not got; those of users in ``erasing`` wait until these are erased."""

    def logged(self, written: Pending) -> None:
        """Takes what was written to the log out of the queue.

        Raises ServingError where another process has written that segment meanwhile.
        """

    def segments_of(self, user: str) -> list[int]:
        """Numbers of the log's segments that may hold events of a user."""

    def erasing(self) -> list[str]:
        """Users who were forgotten and whose events the log may still hold."""

    def erased(self, user: str) -> None:
        """The log holds nothing of the user any more."""

    def close(self) -> None:
        """Lets go of files and connections."""


def line_of(user: str, event: RawEvent) -> str:
    """An event as a line of the log: JSON in the names of the ``files`` source, time in milliseconds since 1970."""
    fields: dict[str, Any] = {
        "user_id": user,
        "event": event.event,
        "timestamp": event.time_ms,
        "item_id": event.item_id,
        "query": event.query,
        "value": event.value,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def mark_of(user: str, salt: bytes) -> str:
    """What stays of a user who was forgotten: enough to know the id when a bundle brings it again, and no id."""
    return hashlib.blake2b(user.encode(), key=salt, digest_size=16).hexdigest()
