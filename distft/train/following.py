"""Who sees a training while it runs: hands each new line of metrics.jsonl to observers, in the driver.

Enters: the stage's folder. Leaves: calls of the observers. Surprising choice: nobody is told anything by a worker. The
journal is what survives a kill, so whatever is shown or sent is taken from it, and can be brought up to date from it
after any interruption.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from distft.storage import Storage
from distft.train.journal import read_lines

LOCAL_POLL_S, REMOTE_POLL_S = 0.5, 5.0
Line = dict[str, Any]
Ending = Literal["finished", "failed", "interrupted"]


class Observer:
    """Sees a training. What goes wrong in an observer is its own affair: it must not raise."""

    def begin(self, known: Sequence[Line]) -> None:
        """The run starts, or goes on: ``known`` are the journal's lines so far."""

    def see(self, lines: Sequence[Line]) -> None:
        """New lines, in the journal's order; called often, also with none."""

    def end(self, ending: Ending, journal: Sequence[Line]) -> None:
        """The run is over, and the whole ``journal`` is at hand."""


class Shown(Observer):
    """Hands every line to a function that shows it to a person."""

    def __init__(self, show: Callable[[Line], None]) -> None:
        self._show = show

    def see(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self._show(line)


@contextmanager
def following(folder: Storage, observers: Sequence[Observer]) -> Iterator[None]:
    """Lets the observers see what the block writes into the journal of ``folder``, and the rest at its end."""
    fresh = _Fresh(list(read_lines(folder)))
    for observer in observers:
        observer.begin(fresh.known)
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(LOCAL_POLL_S if folder.is_local else REMOTE_POLL_S):
            _forward(folder, fresh, observers)

    thread = threading.Thread(target=follow, daemon=True, name="metrics")
    thread.start()
    ending: Ending = "failed"
    try:
        yield
        ending = "finished"
    except KeyboardInterrupt:
        ending = "interrupted"
        raise
    finally:
        ended.set()
        thread.join()
        _forward(folder, fresh, observers)
        journal = list(read_lines(folder))
        for observer in observers:
            observer.end(ending, journal)


def _forward(folder: Storage, fresh: _Fresh, observers: Sequence[Observer]) -> None:
    lines = fresh.of(read_lines(folder))
    for observer in observers:
        observer.see(lines)


class _Fresh:
    """Tells new lines from those that a restarted group of workers writes again, which is what it had done before."""

    def __init__(self, known: list[Line]) -> None:
        self.known = known
        self._latest = max((place(line) for line in known), default=(0, False))
        self._warned = [line for line in known if line["kind"] == "warning"]

    def of(self, journal: Iterator[Line]) -> list[Line]:
        """The lines that were not seen before."""
        new = []
        for line in journal:
            if line["kind"] == "warning":  # of a step that was passed before: it tells of a way back
                if line not in self._warned:
                    self._warned.append(line)
                    new.append(line)
            elif place(line) > self._latest:
                self._latest = place(line)
                new.append(line)
        return new


def place(line: Line) -> tuple[int, bool]:
    """Order of the journal's lines: by step, a validation after the training that it judges."""
    return int(line["step"]), line["kind"] == "valid"
