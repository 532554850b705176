"""Who holds a training up: judged from what was seen of every rank, without any clock but the observer's own.

Enters: sightings of the ranks as they come. Leaves: a ``Stall`` once no rank has got any further for the time that
the job sets. Surprising choice: one rank that goes on is enough for all, since the ranks of a step cannot leave each
other behind: while rank 0 writes a large file, the others wait for it and are not to blame.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from distft.train.position import Sighting

START_S = 120.0
"""Least patience until a first step is taken: importing and starting DeepSpeed is long, whatever a step is."""
SILENT_S = 4.0
"""A rank that has owed an answer for this long does not run; an answer takes milliseconds."""


@dataclass
class Watched:
    """What is known of one rank: its latest sighting, and since when it has owed an answer (None: it does not)."""

    rank: int
    sighting: Sighting | None = None
    asked_s: float | None = None


@dataclass(frozen=True)
class Stall:
    """The rank that the others wait for, as far as can be told; ``silent`` if its process does not even answer.

    ``ranks`` are all that stand equally far back: more than one where a collective itself is stuck.
    """

    rank: int
    ranks: tuple[int, ...]
    silent: bool
    waited_s: float
    sighting: Sighting | None


@dataclass
class Watchdog:
    """The time without progress, and the verdict.

    ``now_s`` is any clock that only goes forward. A pause of the observer itself (its machine slept, its process was
    stopped) is not counted against anybody.
    """

    timeout_s: float
    ranks: dict[int, Watched] = field(default_factory=dict)
    _progress_s: float = 0.0
    _looked_s: float = 0.0

    def start(self, ranks: Iterable[int], now_s: float) -> None:
        """Watches these ranks from now on, and no other."""
        self.ranks = {rank: Watched(rank) for rank in ranks}
        self._progress_s = self._looked_s = now_s

    def asked(self, rank: int, now_s: float) -> None:
        """Notes that a rank was asked where it stands."""
        self.ranks[rank].asked_s = now_s

    def saw(self, rank: int, sighting: Sighting, now_s: float) -> None:
        """Notes a rank's answer."""
        watched = self.ranks[rank]
        before = watched.sighting
        if before is None or (sighting.marks, sighting.beats) != (before.marks, before.beats):
            self._progress_s = now_s
        watched.sighting, watched.asked_s = sighting, None

    def waited_s(self, now_s: float) -> float:
        """Time since any rank was seen to have got further."""
        return now_s - self._progress_s

    def suspects(self, now_s: float) -> bool:
        """True once it has been quiet for long enough to ask for stacks."""
        return self.waited_s(now_s) > self.patience_s / 2

    @property
    def patience_s(self) -> float:
        """The time without progress that is allowed now."""
        started = any(watched.sighting and watched.sighting.taken for watched in self.ranks.values())
        return self.timeout_s if started else max(START_S, self.timeout_s)

    def look(self, now_s: float) -> Stall | None:
        """The verdict, to be asked for again and again; None while all is well."""
        pause_s = now_s - self._looked_s
        self._looked_s = now_s
        if pause_s > max(SILENT_S, self.timeout_s / 2):
            self._progress_s += pause_s
        if not self.ranks or self.waited_s(now_s) < self.patience_s:
            return None
        silent = [w.rank for w in self.ranks.values() if w.asked_s is not None and now_s - w.asked_s > self._silence_s]
        back = silent or self._furthest_back()
        first = back[0]
        return Stall(first, tuple(back), bool(silent), self.waited_s(now_s), self.ranks[first].sighting)

    @property
    def _silence_s(self) -> float:
        return min(SILENT_S, self.timeout_s / 2)

    def _furthest_back(self) -> list[int]:
        """The ranks with the fewest marks; of these, those that do not wait in a collective, if there are any."""
        marks = {rank: w.sighting.marks if w.sighting else -1 for rank, w in self.ranks.items()}
        least = min(marks.values())
        back = [rank for rank, count in sorted(marks.items()) if count == least]
        busy = [rank for rank in back if (seen := self.ranks[rank].sighting) is not None and not seen.waits]
        return busy or back
