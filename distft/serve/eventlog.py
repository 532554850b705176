"""The event log of the service: what users did, as the next job's ``files`` source reads it.

Enters: the queue of a history store. Leaves: ``log/events-<number>.jsonl`` below the service's state, each written
whole. Surprising choice: the log is append-only but for one thing: of a user who asked to be forgotten nothing stays,
so the segments that hold events of that user are written again without them.
"""

from __future__ import annotations

import json

from distft.serve.store import HistoryStore
from distft.storage import Storage

SEGMENT_EVENTS = 10_000
FOLDER = "log"


class EventLog:
    """Writes the queue of ``store`` below ``state``; one at a time."""

    def __init__(self, store: HistoryStore, state: Storage) -> None:
        self._store, self._log = store, state / FOLDER

    def flush(self) -> int:
        """Writes all that waits; gives the number of events. Raises StorageError; what waits then waits on."""
        written = 0
        while (pending := self._store.pending(SEGMENT_EVENTS)).lines:
            self._log.make()
            self._write(pending.segment, [line for _, line in pending.lines])
            self._store.logged(pending)
            written += len(pending.lines)
        return written

    def erase(self, user: str) -> None:
        """Takes the user's events out of the log, and then lets the store know."""
        unfinished = self._store.pending(0).segment  # a kill may have left it before the store knew of it
        for segment in {*self._store.segments_of(user), unfinished}:
            if self._log.exists(_name(segment)):
                lines = self._log.read_bytes(_name(segment)).decode().splitlines()
                self._write(segment, [line for line in lines if json.loads(line)["user_id"] != user])
        self._store.erased(user)

    def recover(self) -> None:
        """Ends what was interrupted: users who were forgotten are erased from the log."""
        for user in self._store.erasing():
            self.erase(user)

    def _write(self, segment: int, lines: list[str]) -> None:
        self._log.write_bytes(_name(segment), "".join(line + "\n" for line in lines).encode())


def _name(segment: int) -> str:
    return f"events-{segment:08}.jsonl"
