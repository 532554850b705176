"""What one place of an epoch holds: a window of a user's events, or one example, a target with its history.

Enters: the rows of ``train/`` that a rank holds. Leaves: any of their units, as ``Histories`` whose last event is a
target. Units are places in the arrays that are there anyhow: nothing is copied until it is read.

Surprising choice: where a split has no order (``data.split.by: random``), the history of an example is all else that
its user did in training, before it and after, and only the example itself is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from distft.data import ragged
from distft.data.hashing import mix
from distft.schema import NUM_RESERVED, Histories

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64 = NDArray[np.int64]


class Units(Protocol):
    """The units of some rows of ``train/``, in the order of the rows."""

    def rows(self, units: Int64) -> Histories:
        """These units, one row each."""

    def hashes(self, units: Int64) -> NDArray[np.uint64]:
        """A hash of each one's user row and of the place of its last event: no two are the same."""


@dataclass(frozen=True)
class Cutting:
    """How rows are cut into units: ``windows`` is that of the job's ``train`` section.

    ``target_codes`` and ``ordered`` (false for a random split) matter for "each" alone.
    """

    windows: str
    max_history: int
    target_codes: NDArray[np.int8]
    ordered: bool = True

    def counts(self, histories: Histories) -> Int64:
        """Units of every row."""
        lengths = histories.lengths
        if self.windows == "last":
            return np.ones(len(lengths), np.int64)
        if self.windows == "all":
            return np.maximum(1, -(-(lengths - 1) // self.max_history))
        return np.diff(np.concatenate([[0], np.cumsum(self.targets(histories))])[histories.offsets])

    def targets(self, histories: Histories) -> NDArray[np.bool_]:
        """Whether each event is a target."""
        return np.isin(histories.event, self.target_codes) & (histories.item_row >= NUM_RESERVED)

    def units(self, histories: Histories) -> Units:
        """The units themselves."""
        counts = self.counts(histories)
        row = np.repeat(np.arange(len(histories)), counts)
        if self.windows == "each":
            return Examples(histories, np.flatnonzero(self.targets(histories)), row, self)
        back = ragged.ranges(np.zeros(len(counts), np.int64), counts) * self.max_history
        ends = histories.offsets[1:][row] - back
        starts = np.maximum(histories.offsets[row], ends - self.max_history - 1)
        return Windows(histories, starts, ends, row)


def _hashes(histories: Histories, row: Int64, ends: Int64) -> NDArray[np.uint64]:
    """Of the events that end before ``ends``, in these rows."""
    last = ends - histories.offsets[row]
    return mix(mix(histories.user_row[row].astype(np.uint64)) ^ last.astype(np.uint64))


@dataclass(frozen=True)
class Windows:
    """Unit i is the events ``starts[i]:ends[i]`` of row ``row[i]``."""

    histories: Histories
    starts: Int64
    ends: Int64
    row: Int64

    def rows(self, units: Int64) -> Histories:
        """These windows."""
        user_row = self.histories.user_row[self.row[units]]
        return ragged.gather(self.histories, self.starts[units], self.ends[units], user_row)

    def hashes(self, units: Int64) -> NDArray[np.uint64]:
        """See Units."""
        return _hashes(self.histories, self.row[units], self.ends[units])


@dataclass(frozen=True)
class Examples:
    """Unit i is the target ``place[i]`` in row ``row[i]``, with its history before it."""

    histories: Histories
    place: Int64
    row: Int64
    cutting: Cutting

    def rows(self, units: Int64) -> Histories:
        """These examples: at most ``max_history`` other events of the row, the latest, and then the target."""
        row, target = self.row[units], self.place[units]
        first, last = self.histories.offsets[row], self.histories.offsets[row + 1]
        size = self.cutting.max_history
        if self.cutting.ordered:
            starts, resume, ends = np.maximum(first, target - size), target, target
        else:
            start = last - size - (target >= last - size)
            starts, resume, ends = np.maximum(first, start), np.maximum(target + 1, start), last
        before = np.maximum(target - starts, 0)
        lengths = np.stack([before, ends - resume, np.ones(len(units), np.int64)], 1)
        events = ragged.ranges(np.stack([starts, resume, target], 1).ravel(), lengths.ravel())
        return ragged.gather_events(self.histories, events, lengths.sum(1), self.histories.user_row[row])

    def hashes(self, units: Int64) -> NDArray[np.uint64]:
        """See Units."""
        return _hashes(self.histories, self.row[units], self.place[units] + 1)
