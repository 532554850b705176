"""Plots as inline SVG without a script: scales, ticks and shapes; ``plots.html`` draws them.

Enters: numbers. Leaves: ``Plot`` values. A plot's shapes lie in a square of ``SIZE`` that is stretched to whatever
room there is; its ticks are HTML text placed in percent, so that they keep their size on a phone and on a wide screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

SIZE = 1000
MAX_TICKS = 7
_HOURS = (1, 2, 3, 6, 12, 24, 48)
_MINUTES = (1, 2, 5, 10, 15, 30, 60, 120)
_DAYS = (1, 2, 7, 14)
_MONTHS = (1, 2, 3, 6, 12, 24, 60, 120, 240)


@dataclass(frozen=True)
class Tick:
    """A label at a share (0 to 1) of its axis, counted from the left or from the top."""

    at: float
    text: str


@dataclass(frozen=True)
class Shape:
    """One drawn thing: ``kind`` is the CSS class, ``path`` the data of an SVG path, ``hint`` shows on hovering."""

    kind: str
    path: str
    hint: str = ""


@dataclass(frozen=True)
class Plot:
    """All that the template draws. ``title`` and ``description`` tell those who cannot see it the same."""

    title: str
    description: str
    x: Sequence[Tick]
    y: Sequence[Tick]
    shapes: Sequence[Shape]
    x_label: str = ""
    y_label: str = ""
    color: int = 0
    small: bool = False


Scale = Callable[[float], float]
"""A value → its share of the axis."""


def linear(low: float, high: float) -> Scale:
    """Shares between two values."""
    return lambda value: (value - low) / (high - low) if high > low else 0.0


def logarithmic(low: float, high: float) -> Scale:
    """Shares between two positive values, equal for equal ratios."""
    within = linear(math.log(low), math.log(high))
    return lambda value: within(math.log(value))


def count_ticks(high: float, most: int = 4) -> list[int]:
    """Round numbers from 0 to ``high`` or above, at most ``most`` steps."""
    step = next(step for step in _round_numbers() if step * most >= high)
    return [step * place for place in range(math.ceil(high / step) + 1)]


def decade_ticks(low: float, high: float) -> list[int]:
    """Powers of ten from ``low`` to ``high``; with 2 and 5 between them where there are few."""
    powers = [10**power for power in range(math.ceil(math.log10(max(high, 1))) + 1)]
    between = powers if high / low >= 1000 else [factor * power for power in powers for factor in (1, 2, 5)]
    return [value for value in between if low <= value <= high]


def _round_numbers() -> Sequence[int]:
    return [factor * 10**power for power in range(15) for factor in (1, 2, 5)]


def time_ticks(first: datetime, last: datetime, unit: str) -> list[tuple[datetime, str]]:
    """At most ``MAX_TICKS`` round moments from ``first`` to ``last``, with labels; ``unit`` is that of the data."""
    if unit == "day" and (last - first).days > _DAYS[-1] * MAX_TICKS:
        return _month_ticks(first, last)
    steps, width, form = {
        "day": (_DAYS, timedelta(days=1), "%Y-%m-%d"),
        "hour": (_HOURS, timedelta(hours=1), "%m-%d %H:%M"),
        "minute": (_MINUTES, timedelta(minutes=1), "%H:%M"),
    }[unit]
    units = (last - first) / width
    step = next((step for step in steps if units / step < MAX_TICKS), steps[-1]) * width
    midnight = first.replace(hour=0, minute=0, second=0, microsecond=0)
    moment = midnight + math.ceil((first - midnight) / step) * step
    found = []
    while moment <= last:
        found.append((moment, moment.strftime(form)))
        moment += step
    return found


def _month_ticks(first: datetime, last: datetime) -> list[tuple[datetime, str]]:
    begin, end = first.year * 12 + first.month, last.year * 12 + last.month - 1
    step = next((step for step in _MONTHS if (end - begin + 1) / step <= MAX_TICKS), _MONTHS[-1])
    months = [number for number in range(begin, end + 1) if number % step == 0]
    moments = [datetime(number // 12, number % 12 + 1, 1, tzinfo=timezone.utc) for number in months]
    return [(moment, moment.strftime("%Y" if step % 12 == 0 else "%Y-%m")) for moment in moments]


def box(left: float, right: float, height: float) -> str:
    """The path of a bar on the ground, in shares of the axes."""
    x, y, far = (round(SIZE * value, 1) for value in (left, 1 - height, right))
    return f"M{x:g} {SIZE}V{y:g}H{far:g}V{SIZE}Z"


def line(points: Sequence[tuple[float, float]]) -> str:
    """The path through points, in shares of the axes."""
    places = [f"{round(SIZE * x, 1):g} {round(SIZE * (1 - y), 1):g}" for x, y in points]
    return "M" + "L".join(places)


def upright(at: float) -> str:
    """The path of a line from the ground to the top."""
    return f"M{round(SIZE * at, 1):g} 0V{SIZE}"


def short(value: float) -> str:
    """A count in few characters: 950, 12k, 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
