"""``metrics.jsonl``: what was measured while training, one JSON object a line, every step once.

Enters: observations with their step. Leaves: the file. Surprising choice: it is cut back to the step that a run
goes on from, so that an interrupted training leaves the same steps as an undisturbed one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

from distft.storage import Storage, explained

METRICS = "metrics.jsonl"
PLACE_KEYS = ("kind", "step", "epoch", "total_steps")
"""Keys that say where a line stands, not what was measured there."""
TIMED_KEYS = ("time_s", "step_s", "tokens_per_s", "data_wait_share")
"""Keys in which two runs of the same training differ."""


class Journal:
    """The file, open for appending; only rank 0 has one.

    On other storage than a local folder nothing can be appended to: there the file is written anew at each
    ``commit``.
    """

    def __init__(self, folder: Storage, step: int) -> None:
        self._folder = folder
        kept = [line for line in read_lines(folder) if line["step"] <= step]
        self._text = "".join(_dump(line) for line in kept)
        folder.write_bytes(METRICS, self._text.encode())

    def write(self, **line: Any) -> None:
        """Adds one observation with the time (Unix, s); it must have its ``kind`` and its ``step``."""
        text = _dump({**line, "time_s": round(time.time(), 3)})
        if self._folder.is_local:
            with explained(self._folder.uri), open(self._folder.path / METRICS, "a", encoding="utf-8") as stream:
                stream.write(text)
        else:
            self._text += text

    def warn(self, message: str, step: int, attempt: str) -> None:
        """Adds what a person should know of; ``attempt`` tells it from the same one of an earlier start."""
        self.write(kind="warning", step=step, attempt=attempt, message=message)

    def commit(self) -> None:
        """Makes sure that what was written outlives a crash of the machine."""
        if self._folder.is_local:
            with explained(self._folder.uri), open(self._folder.path / METRICS, "a", encoding="utf-8") as stream:
                os.fsync(stream.fileno())
        else:
            self._folder.write_bytes(METRICS, self._text.encode())


def read_lines(folder: Storage) -> Iterator[dict[str, Any]]:
    """The observations so far; a last line that a crash cut off is left out."""
    if not folder.exists(METRICS):
        return
    yield from parse(folder.read_bytes(METRICS).decode(errors="replace"))


def parse(text: str) -> Iterator[dict[str, Any]]:
    """The observations in a text, up to the first line that is not whole."""
    for line in text.split("\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            return
        yield value


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
