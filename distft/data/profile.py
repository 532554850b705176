"""What a dataset looks like before anything is trained on it: the numbers of the data report, in ``stats.json``.

Enters: the kept events of each partition, and the items' counts. Leaves: JSON. A partition gives counts that add up
(events a period and type, users a history length), so that the report costs one pass over columns that are in memory.

Surprising choice: the width of a period follows from the log's span. A log of two hours has no days to show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from distft.data.split import DAY_MS, TEST, TRAIN, VALID
from distft.schema import SPLITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from distft.data.partition import Partition

Unit = Literal["day", "hour", "minute"]

WIDTH_MS: dict[Unit, int] = {"day": DAY_MS, "hour": 3_600_000, "minute": 60_000}
_MIN_SPAN_MS: dict[Unit, int] = {"day": 4 * DAY_MS, "hour": 6 * 3_600_000, "minute": 0}
_LABEL: dict[Unit, str] = {"day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H:00", "minute": "%Y-%m-%dT%H:%M"}
CURVE_POINTS = 60
QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99, "max": 1.0}
TOP_SHARES = (0.01, 0.1, 0.5)


@dataclass(frozen=True)
class Periods:
    """Equal periods that cover a log, in UTC."""

    unit: Unit
    first: int
    count: int

    @classmethod
    def of_span(cls, first_ms: int, last_ms: int) -> Periods:
        """Days; hours for a log of less than four days, minutes for one of less than six hours."""
        unit = next(unit for unit, least_ms in _MIN_SPAN_MS.items() if last_ms - first_ms >= least_ms)
        first = first_ms // WIDTH_MS[unit]
        return cls(unit, first, last_ms // WIDTH_MS[unit] - first + 1)

    def places(self, time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """The period of each time, from 0."""
        return np.asarray(time_ms // WIDTH_MS[self.unit] - self.first)

    def label(self, place: int) -> str:
        """When a period begins, as people write it."""
        start_s = (self.first + place) * WIDTH_MS[self.unit] // 1000
        return datetime.fromtimestamp(start_s, tz=timezone.utc).strftime(_LABEL[self.unit])


def profile(
    events: Partition,
    part: NDArray[np.int8],
    is_target: NDArray[np.bool_],
    periods: Periods | None,
    num_types: int,
) -> dict[str, Any]:
    """Counts of one partition as JSON; ``periods`` is None where there is no clock.

    ``lengths`` and ``events`` are (values, counts); an event's value is period * ``num_types`` + code - 1.
    ``spans``: first and last time of the training events, and of the targets of each other part.
    """
    counted: dict[str, Any] = {"lengths": _sparse(np.bincount(np.diff(events.user_offsets)), 1)}
    if periods is not None:
        values = periods.places(events.time_ms) * num_types + events.event - 1
        counted["events"] = _sparse(np.bincount(values))
        masks = {TRAIN: part == TRAIN, **{one: is_target & (part == one) for one in (VALID, TEST)}}
        counted["spans"] = [_span(events.time_ms[masks[one]]) for one in (TRAIN, VALID, TEST)]
    return counted


def _sparse(counts: NDArray[np.int64], first: int = 0) -> list[list[int]]:
    values = np.flatnonzero(counts[first:]) + first
    return [values.tolist(), counts[values].tolist()]


def _span(time_ms: NDArray[np.int64]) -> list[int]:
    return [int(time_ms.min()), int(time_ms.max())] if len(time_ms) else []


@dataclass
class Profile:
    """The sum of the partitions' counts."""

    event_names: Sequence[str]
    periods: Periods | None
    lengths: Counter[int] = field(default_factory=Counter)
    events: Counter[int] = field(default_factory=Counter)
    spans: list[list[int]] = field(default_factory=lambda: [[], [], []])

    def add(self, counted: Mapping[str, Any]) -> None:
        """Takes what ``profile`` gave for one partition."""
        self.lengths.update(dict(zip(*counted["lengths"], strict=True)))
        if self.periods is not None:
            self.events.update(dict(zip(*counted["events"], strict=True)))
            self.spans = [_joined(*both) for both in zip(self.spans, counted["spans"], strict=True)]

    def to_json(self, items: pl.DataFrame) -> dict[str, Any]:
        """What ``stats.json`` holds as ``profile``; ``items``: the frame of ``vocabulary.count_items``."""
        return {
            "periods": self._periods(),
            "histories": histories(self.lengths),
            "popularity": popularity(items.filter("known")["targets"].to_numpy()),
            "cold": {name: cold(items, name) for name in SPLITS[1:]},
        }

    def split_times(self) -> dict[str, dict[str, int]]:
        """First and last time of each split, where there is a clock."""
        ends = zip(SPLITS, self.spans, strict=True)
        return {split: {"first_ms": span[0], "last_ms": span[1]} if span else {} for split, span in ends}

    def _periods(self) -> dict[str, Any] | None:
        """Events by type of each period that has any."""
        if self.periods is None:
            return None
        size = len(self.event_names)
        places = sorted({value // size for value in self.events})
        return {
            "unit": self.periods.unit,
            "starts": [self.periods.label(place) for place in places],
            "by_type": {
                name: [self.events[place * size + code] for place in places]
                for code, name in enumerate(self.event_names)
            },
        }


def _joined(one: Sequence[int], other: Sequence[int]) -> list[int]:
    both = [*one, *other]
    return [min(both), max(both)] if both else []


def histories(lengths: Mapping[int, int]) -> dict[str, Any]:
    """Events a user: quantiles, and users by ranges of lengths that grow with the length."""
    values = np.array(sorted(lengths), np.int64)
    users = np.array([lengths[value] for value in values.tolist()], np.int64)
    upto = np.cumsum(users)
    total = int(upto[-1])
    ranks = {name: min(int(share * total), total - 1) for name, share in QUANTILES.items()}
    edges = _edges(int(values[-1]))
    binned = np.add.reduceat(np.append(users, 0), np.searchsorted(values, edges[:-1]))
    empty = np.diff(np.searchsorted(values, edges)) == 0
    return {
        "users": total,
        "mean": round(float((values * users).sum() / total), 2),
        "quantiles": {name: int(values[np.searchsorted(upto, rank, side="right")]) for name, rank in ranks.items()},
        "bins": [
            {"from": low, "to": high - 1, "users": 0 if none else int(count)}
            for (low, high), count, none in zip(pairwise(edges), binned, empty, strict=True)
        ],
    }


def _edges(largest: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, ...: two ranges to each doubling, up to one above ``largest``."""
    edges = [1]
    while edges[-1] <= largest:
        power = 1 << (edges[-1].bit_length() - 1)
        halfway = power + power // 2
        edges.append(halfway if edges[-1] < halfway else 2 * power)
    return edges


def popularity(targets: NDArray[np.int64]) -> dict[str, Any]:
    """How the training's target events spread over the items that have a row."""
    counts = -np.sort(-targets[targets > 0])
    upto = np.cumsum(counts)
    total = int(counts.sum())
    ranks = np.unique(np.geomspace(1, max(len(counts), 1), CURVE_POINTS).round().astype(np.int64))[: len(counts)]
    tops = {f"{share:.0%}": max(1, round(share * len(counts))) for share in TOP_SHARES} if len(counts) else {}
    return {
        "events": total,
        "items": len(counts),
        "items_without": int((targets == 0).sum()),
        "items_of_half": int(np.searchsorted(upto, total / 2)) + 1 if total else 0,
        "top_shares": {name: round(float(upto[top - 1] / total), 4) for name, top in tops.items()},
        "curve": [[int(rank), int(counts[rank - 1])] for rank in ranks],
    }


def cold(items: pl.DataFrame, split: str) -> dict[str, Any]:
    """Targets of a split, and the items among them, that no event of the training part holds."""
    wanted = items.filter(pl.col(split) > 0)
    without = wanted.filter(pl.col("train") == 0)
    targets, cold_targets = int(wanted[split].sum()), int(without[split].sum())
    return {
        "targets": targets,
        "cold_targets": cold_targets,
        "share": round(cold_targets / max(targets, 1), 6),
        "items": len(wanted),
        "cold_items": len(without),
    }
