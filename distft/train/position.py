"""Where this rank of a training stands, and what it is asked to do: the worker's side of the supervision.

Enters: a mark at every part of a step, from the training's thread. Leaves: a ``Sighting`` for whoever asks from
another thread. Surprising choice: one value for the whole process, because the question comes in through Ray's own
call to the worker, which knows no loop. A mark costs less than a microsecond and tells nobody: who wants to know asks.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

STACK_FRAMES = 24
PACKAGE = __name__.split(".", 1)[0]
WAITING = ("torch/distributed/", "deepspeed/comm/")
"""Files of whose functions one stands innermost on the stack while a rank waits for the others."""


@dataclass(frozen=True)
class Sighting:
    """What was seen of a rank: ``marks`` so far, the last one's phase and step, memory, and its stack if asked for.

    ``beats`` are signs of life within a phase, which ranks need not have alike; ``writing``: its writer of checkpoints
    is at work. ``saved_step``: the latest checkpoint that it knows to be committed. ``taken``: steps of this attempt.
    """

    marks: int
    phase: str
    step: int
    beats: int = 0
    writing: bool = False
    saved_step: int = -1
    rss_bytes: int = 0
    oom_kills: int = 0
    taken: int = 0
    stack: tuple[str, ...] = ()

    @property
    def waits(self) -> bool:
        """True if it waits for another rank: in a collective, or for its own writer, which has done its part."""
        inner = self.stack[-4:]
        joins = any("saving.py" in frame for frame in inner) and not self.writing
        return joins or any(name in frame for frame in inner for name in WAITING)


class Position:
    """Marks of one process; ``save_wanted`` is set from outside, and read and answered by the training."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets everything: another training starts in this process."""
        self.marks = self.beats = self.step = self.taken = 0
        self.phase, self.saved_step = "starting", -1
        self.save_wanted = self.writing = False
        self._thread = threading.get_ident()

    def at(self, phase: str, step: int | None = None) -> None:
        """Notes that the training goes on to ``phase``: a sign of life."""
        self.phase = phase
        if step is not None:
            self.step = step
        self.marks += 1

    def beat(self) -> None:
        """Notes a sign of life within a phase, from any thread."""
        self.beats += 1

    def look(self, with_stack: bool = False) -> Sighting:
        """What there is to see now; called from another thread."""
        stack = self._stack() if with_stack else ()
        writer = (self.beats, self.writing, self.saved_step)
        return Sighting(self.marks, self.phase, self.step, *writer, _rss_bytes(), oom_kills(), self.taken, stack)

    def _stack(self) -> tuple[str, ...]:
        frame = sys._current_frames().get(self._thread)
        if frame is None:
            return ()
        lines = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)
        frames = [f"{line.filename}:{line.lineno} in {line.name}" for line in reversed(lines)]
        ours = next((index for index, one in enumerate(frames) if f"/{PACKAGE}/" in one), 0)  # below is Ray's thread
        return tuple(frames[ours:][-STACK_FRAMES:])


here = Position()
"""The position of this process."""


def _rss_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def oom_kills() -> int:
    """Processes that the kernel has killed for memory since this machine started; 0 where it does not tell."""
    try:
        lines = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:
        return 0
    return int(lines.get("oom_kill", 0))
