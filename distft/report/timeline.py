"""Events over time, one plot an event type: what is rare beside another type is still to be seen.

Enters: the statistics of a dataset. Leaves: plots that share their time axis, and the same numbers as a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np

from distft.report.plots import Plot, Shape, Tick, box, count_ticks, linear, short, time_ticks

MAX_BARS = 400
MAX_ROWS = 60
WIDTH = {"day": timedelta(days=1), "hour": timedelta(hours=1), "minute": timedelta(minutes=1)}
_MERGED = {"day": (1, 7, 28, 91, 364, 3640), "hour": (1, 3, 6, 12), "minute": (1, 5, 10, 30)}
_FORM = {"day": "%Y-%m-%d", "hour": "%Y-%m-%d %H:%M", "minute": "%Y-%m-%d %H:%M"}


@dataclass(frozen=True)
class Bars:
    """Events by type in equal periods of ``width`` from ``first``, those without events included."""

    unit: str
    first: datetime
    size: int
    by_type: Mapping[str, list[int]]

    @property
    def width(self) -> timedelta:
        """Length of a period."""
        return self.size * WIDTH[self.unit]

    @property
    def count(self) -> int:
        """Number of periods."""
        return len(next(iter(self.by_type.values())))

    def label(self, place: int) -> str:
        """When a period begins."""
        return (self.first + place * self.width).strftime(_FORM[self.unit])

    def words(self) -> str:
        """A period in words: "day", "7 days"."""
        return self.unit if self.size == 1 else f"{self.size:,} {self.unit}s"


def merged(periods: Mapping[str, Any], most: int) -> Bars:
    """The periods, several of them together where there would be more than ``most``."""
    unit = periods["unit"]
    starts = [datetime.fromisoformat(start).replace(tzinfo=timezone.utc) for start in periods["starts"]]
    places = np.array([(start - starts[0]) // WIDTH[unit] for start in starts])
    count = int(places[-1]) + 1
    size = next((size for size in _MERGED[unit] if count / size <= most), _MERGED[unit][-1])
    by_type = {
        name: np.bincount(places // size, counts, minlength=-(-count // size)).astype(np.int64).tolist()
        for name, counts in periods["by_type"].items()
    }
    return Bars(unit, starts[0], size, by_type)


def table(periods: Mapping[str, Any]) -> Bars:
    """The periods in few enough rows to be read."""
    return merged(periods, MAX_ROWS)


def plots(stats: Mapping[str, Any]) -> list[Plot]:
    """One plot for each event type that occurs, with the windows of validation and test shaded."""
    bars = merged(stats["profile"]["periods"], MAX_BARS)
    shown = {name: bars.by_type[name] for name in by_frequency(stats["events_kept"])}
    end = bars.first + bars.count * bars.width
    x = linear(bars.first.timestamp(), end.timestamp())
    ticks = [Tick(x(moment.timestamp()), text) for moment, text in time_ticks(bars.first, end, bars.unit)]
    last = list(shown)[-1]
    return [
        Plot(
            title=f"{name} events a {bars.words()}",
            description=_describe(bars, counts),
            x=ticks if name == last else [],
            y=_y_ticks(max(counts), len(shown) > 1),
            shapes=[*_windows(stats["times"], x), *_bars(bars, counts, len(shown) > 1)],
            y_label=f"{name.replace('_', ' ')} events",
            x_label=f"UTC, one bar a {bars.words()}" if name == last else "",
            color=place,
            small=len(shown) > 1,
        )
        for place, (name, counts) in enumerate(shown.items())
    ]


def by_frequency(counts: Mapping[str, int]) -> list[str]:
    """The names that have a count, the largest first; the same whatever order they come in."""
    return sorted((name for name, count in counts.items() if count), key=lambda name: (-counts[name], name))


def _steps(small: bool) -> int:
    return 2 if small else 4


def _y_ticks(high: int, small: bool) -> list[Tick]:
    ticks = count_ticks(high, _steps(small))
    return [Tick(1 - value / ticks[-1], short(value)) for value in ticks]


def _bars(bars: Bars, counts: list[int], small: bool) -> list[Shape]:
    high = count_ticks(max(counts), _steps(small))[-1]
    # Thin bars touch: gaps of less than a pixel would only make them pale.
    gap = 0.1 if bars.count <= 100 else 0.0
    return [
        Shape(
            "bar",
            box((place + gap) / bars.count, (place + 1 - gap) / bars.count, count / high),
            f"{bars.label(place)}: {count:,}",
        )
        for place, count in enumerate(counts)
        if count
    ]


def _windows(times: Mapping[str, int], x: Any) -> list[Shape]:
    """The windows of a split by time."""
    if "test_start_ms" not in times:
        return []
    begin, middle, end = (x(times[name] / 1000) for name in ("valid_start_ms", "test_start_ms", "last_ms"))
    return [Shape("valid", box(begin, middle, 1)), Shape("test", box(middle, end, 1))]


def _describe(bars: Bars, counts: list[int]) -> str:
    high = int(np.argmax(counts))
    empty = counts.count(0)
    return (
        f"Bars from {bars.label(0)} on, {bars.count:,} in all, {sum(counts):,} events; most of them, {counts[high]:,}, "
        f"in the {bars.unit if bars.size == 1 else bars.words()} from {bars.label(high)}; {empty:,} without any."
    )
