"""A file that is followed: what it holds now, without a restart.

Enters: a path and how to read it. Leaves: the value of what was last read whole. Surprising choice: a file that cannot
be read any longer leaves the value as it was, and the log says so; a slip of an editor must not lock a shop out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from distft.errors import UsageError

RELOAD_S = 2.0
"""How often the file is looked at."""

_Value = TypeVar("_Value")

logger = logging.getLogger(__name__)


class Followed(Generic[_Value]):
    """The value of a file. For one thread."""

    def __init__(self, path: Path, read: Callable[[Path], _Value], clock: Callable[[], float] = time.monotonic) -> None:
        """Raises what ``read`` raises: UsageError where the file cannot be used."""
        self._path, self._read, self._clock = path, read, clock
        self._stamp, self._looked_s = _stamp(path), clock()
        self._value = read(path)

    def value(self) -> _Value:
        """What the file holds; the same object until it is written again."""
        now_s = self._clock()
        if now_s - self._looked_s < RELOAD_S:
            return self._value
        self._looked_s = now_s
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            try:
                self._value = self._read(self._path)
            except UsageError as error:
                logger.error("What %s held stays in force: %s", self._path, error)
            self._stamp = stamp
        return self._value


def _stamp(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written again or replaced."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
