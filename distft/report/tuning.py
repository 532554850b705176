"""Renders ``tune/index.html``: the curves of all trials, what they tried, and the map of learning rate and batch size.

Enters: the summary of a search, and its trials as JSON values. Leaves: HTML text. No script and no outside resource,
like the other pages. Surprising choice: in every plot the better a trial is, the darker is its line, by its place among
all and not by its value, since one bad trial would make all others alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from distft import __version__
from distft.report.groups import figure
from distft.report.plots import SIZE, Plot, Scale, Shape, Tick, count_ticks, line, linear, logarithmic
from distft.report.trials import (
    Trials,
    gain_lines,
    outcome,
    ranked,
    short_names,
    summary_rows,
    value_text,
    values_text,
)

RATE, BATCH = "train.learning_rate", "train.batch_size"
SHADES = 4
"""Degrees of darkness of lines and points; the best trial has a colour of its own."""


def render(name: str, summary: Mapping[str, Any], trials: Trials) -> str:
    """The page of one search."""
    environment = Environment(loader=PackageLoader("distft", "report"), autoescape=True, undefined=StrictUndefined)
    order = ranked(trials, summary["metric"])
    kinds = {trial["number"]: _kind(place, len(order)) for place, trial in enumerate(order)}
    drawn = [trial for trial in reversed(order) if trial["best_value"] is not None]  # the best on top
    plots = [
        _curves(drawn, kinds, summary["metric"]),
        _coordinates(drawn, kinds, summary["metric"]),
        _map(drawn, kinds),
    ]
    names = short_names(list(trials[0]["effective"]))
    return environment.get_template("tuning.html").render(
        name=name,
        summary=summary,
        facts=summary_rows(summary),
        gains=gain_lines(summary),
        names=list(names.values()),
        rows=[
            {
                "trial": trial["number"],
                "values": [value_text(value) for value in trial["effective"].values()],
                "value": figure(trial["best_value"]),
                "epoch": trial["best_epoch"] or "–",
                "outcome": outcome(trial),
                "seconds": f"{trial['train_s'] + trial['valid_s']:.0f}",
            }
            for trial in order
        ],
        plots=[plot for plot in plots if plot],
        version=__version__,
    )


def _kind(place: int, count: int) -> str:
    """The CSS class of a trial's line, by its place from the best one."""
    return "best" if place == 0 else f"shade{min(SHADES - 1, SHADES * place // max(1, count))}"


def _hint(trial: Mapping[str, Any]) -> str:
    found = "" if trial["best_value"] is None else f": {figure(trial['best_value'])}"
    return f"trial {trial['number']}, {values_text(trial['effective'])}{found}"


def _curves(trials: Trials, kinds: Mapping[int, str], metric: str) -> Plot | None:
    """The metric of every trial over its epochs."""
    values = [value for trial in trials for _, value in trial["curve"]]
    if not values:
        return None
    last = max(epoch for trial in trials for epoch, _ in trial["curve"])
    across, up = linear(0, last), linear(min(values), max(values))
    shapes = []
    for trial in trials:
        points = [(across(epoch), up(value)) for epoch, value in trial["curve"]]
        kind = kinds[trial["number"]]
        if len(points) > 1:
            shapes.append(Shape(f"trial {kind}", line(points), _hint(trial)))
        if points:
            shapes.append(_point(points[-1], kind, _hint(trial)))
    ticks = [Tick(across(epoch), str(epoch)) for epoch in count_ticks(last, 6) if epoch <= last]
    return Plot(
        f"Validation {metric} of the trials",
        f"{len(trials)} trials over up to {last} epochs, from {figure(min(values))} to {figure(max(values))}.",
        ticks,
        _value_ticks(values),
        shapes,
        x_label="epoch",
    )


def _coordinates(trials: Trials, kinds: Mapping[int, str], metric: str) -> Plot | None:
    """Parallel coordinates: an axis for every key, one for the metric, a line for every trial."""
    if not trials:
        return None
    keys = list(trials[0]["effective"])
    columns = [[trial["effective"][key] for trial in trials] for key in keys]
    columns.append([trial["best_value"] for trial in trials])
    scales = [_scale(column) for column in columns]
    places = [index / (len(columns) - 1) for index in range(len(columns))]
    shapes = [Shape("axis", f"M{SIZE * place:g} 0V{SIZE}") for place in places]
    for row, trial in enumerate(trials):
        points = [(at, up(column[row])) for at, up, column in zip(places, scales, columns, strict=True)]
        shapes.append(Shape(f"trial {kinds[trial['number']]}", line(points), _hint(trial)))
    names = [*short_names(keys).values(), metric]
    labels = [f"{name}: {_range(column)}" for name, column in zip(names, columns, strict=True)]
    return Plot(
        "What the trials tried",
        "An axis for every key and the metric, each from its lowest value below to its highest above.",
        [Tick(at, text) for at, text in zip(places, labels, strict=True)],
        [],
        shapes,
    )


def _map(trials: Trials, kinds: Mapping[int, str]) -> Plot | None:
    """Every trial at its learning rate and batch size."""
    if not trials or not all({RATE, BATCH} <= trial["effective"].keys() for trial in trials):
        return None
    rates = [trial["effective"][RATE] for trial in trials]
    sizes = sorted({trial["effective"][BATCH] for trial in trials})
    across = _padded(logarithmic(min(rates), max(rates)))
    up = _padded(logarithmic(sizes[0], sizes[-1]))
    shapes = [
        _point(
            (across(trial["effective"][RATE]), up(trial["effective"][BATCH])),
            kinds[trial["number"]] + " big",
            _hint(trial),
        )
        for trial in trials
    ]
    return Plot(
        "Learning rate and batch size",
        "Every trial as a point; the best one has its own colour, and the better the others are, the darker they are.",
        [Tick(across(value), f"{value:.1e}") for value in (min(rates), math.sqrt(min(rates) * max(rates)), max(rates))],
        [Tick(1 - up(size), str(size)) for size in sizes],
        shapes,
        x_label="learning rate (batch size upwards)",
    )


def _padded(scale: Scale) -> Scale:
    """A scale that leaves a margin on both sides: points are not to lie on the frame."""
    return lambda value: 0.06 + 0.88 * scale(value)


def _point(at: tuple[float, float], kind: str, hint: str) -> Shape:
    x, y = round(SIZE * at[0], 1), round(SIZE * (1 - at[1]), 1)
    return Shape(f"point {kind}", f"M{x:g} {y:g}h0.01", hint)


def _scale(column: Sequence[Any]) -> Scale:
    """Of an axis: by the logarithm where numbers span a decade, by the order of their texts where they are none."""
    if not all(_is_number(value) for value in column):
        texts = sorted({value_text(value) for value in column})
        within = linear(0, len(texts) - 1)
        return lambda value: within(texts.index(value_text(value)))
    low, high = min(column), max(column)
    return logarithmic(low, high) if low > 0 and high / low >= 10 else linear(low, high)


def _range(column: Sequence[Any]) -> str:
    if all(_is_number(value) for value in column):
        return f"{value_text(min(column))} to {value_text(max(column))}"
    return " · ".join(sorted({value_text(value) for value in column}))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value_ticks(values: Sequence[float]) -> list[Tick]:
    low, high = min(values), max(values)
    return [Tick(1 - share, figure(low + share * (high - low))) for share in (0.0, 0.5, 1.0)]
