"""Renders ``dataset/report.html``: what is in the logs and what prepare made of them, to be read before training.

Enters: the job's ``data`` section and the dataset's ``stats.json``. Leaves: HTML text. It is a function of these two
alone, so that the same input gives the same page; neither the job's name nor a clock is on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from distft import __version__
from distft.jobfile import dump_job
from distft.report import timeline
from distft.report.plots import Plot, Shape, Tick, box, count_ticks, decade_ticks, line, logarithmic, short, upright
from distft.schema import SPLITS
from distft.sections.data import Data

SPLIT_NAMES = {"train": "training", "valid": "validation", "test": "test"}


def render(data: Data, stats: Mapping[str, Any]) -> str:
    """The page of one dataset."""
    environment = Environment(
        loader=PackageLoader("distft", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"count": "{:,}".format, "percent": percent, "plain": plain}
    profile = stats["profile"]
    return environment.get_template("data.html").render(
        stats=stats,
        profile=profile,
        account=account(stats),
        splits=split_rows(stats),
        split_by=data.split.by,
        targets=data.target_events,
        max_context=data.max_context,
        span=span(stats),
        timeline=timeline.plots(stats) if profile["periods"] else [],
        periods=timeline.table(profile["periods"]) if profile["periods"] else None,
        types=type_rows(stats),
        lengths=lengths_plot(profile["histories"]),
        curve=popularity_plot(profile["popularity"]),
        cold=cold_rows(profile["cold"]),
        data_yaml=dump_job(data),
        version=__version__,
    )


def percent(share: float) -> str:
    """A share as people write it; a small one is not written as none."""
    if 0 < share < 0.0005:
        return "< 0.1%"
    return f"{share:.1%}"


def plain(name: str) -> str:
    """A reason or an event type in words."""
    return name.replace("_", " ")


def account(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for everything that became of rows: kept, and each reason to reject or filter, the largest first."""
    rows = [("kept", "", stats["kept"])]
    for fate in ("rejected", "filtered"):
        reasons = sorted(stats[fate]["by_reason"].items(), key=lambda one: (-one[1], one[0]))
        rows += [(fate, reason, count) for reason, count in reasons if count]
    total = max(stats["rows_in"], 1)
    return [
        {"fate": fate, "reason": reason, "rows": count, "share": count / total, "examples": _examples(stats, reason)}
        for fate, reason, count in rows
    ]


def _examples(stats: Mapping[str, Any], reason: str) -> Sequence[str]:
    found: Sequence[str] = stats["rejected"]["examples"].get(reason, ())
    return found


def span(stats: Mapping[str, Any]) -> tuple[str, str] | None:
    """When the first and the last event happened; None where there is no clock."""
    times = stats["times"]
    return (moment(times["first_ms"], stats), moment(times["last_ms"], stats)) if "first_ms" in times else None


def moment(time_ms: int, stats: Mapping[str, Any]) -> str:
    """A time in UTC: the day alone, unless the log is a matter of hours."""
    periods = stats["profile"]["periods"]
    form = "%Y-%m-%d" if not periods or periods["unit"] == "day" else "%Y-%m-%d %H:%M"
    return datetime.fromtimestamp(time_ms / 1000, tz=timezone.utc).strftime(form)


def split_rows(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a split: its rows, events, dates, and the targets that cannot be learnt or have no history."""
    rows = []
    for split in SPLITS:
        counts = stats["splits"][split]
        cold = stats["profile"]["cold"].get(split)
        dates = [moment(counts[key], stats) for key in ("first_ms", "last_ms") if key in counts]
        rows.append(
            {
                "name": SPLIT_NAMES[split],
                "rows": counts["rows"],
                "events": counts["events"],
                "dates": dates,
                "cold": cold["share"] if cold else None,
                "without_history": counts["without_history"] / max(counts["rows"], 1) if cold else None,
            }
        )
    return rows


def type_rows(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row an event type: how many were read and kept, and its share of the kept ones."""
    read, kept = stats["events_read"], stats["events_kept"]
    names = timeline.by_frequency(kept)
    names += [name for name in timeline.by_frequency(read) if name not in names]
    return [
        {"name": name, "color": place, "read": read[name], "kept": kept[name], "share": kept[name] / stats["kept"]}
        for place, name in enumerate(names)
    ]


def cold_rows(cold: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each split its targets and target items, and how many of them no training event holds."""
    rows: list[dict[str, Any]] = []
    for split in SPLITS[1:]:
        name, counts = SPLIT_NAMES[split], cold[split]
        items = counts["cold_items"] / max(counts["items"], 1)
        rows += [
            {"name": f"{name} targets", "all": counts["targets"], "cold": counts["cold_targets"]}
            | {"share": counts["share"]},
            {"name": f"items of {name} targets", "all": counts["items"], "cold": counts["cold_items"], "share": items},
        ]
    return rows


def key_figures(stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is to be known of users and items first, in words."""
    quantiles, popularity = stats["profile"]["histories"]["quantiles"], stats["profile"]["popularity"]
    figures = [
        ("users", f"{stats['users']:,}"),
        ("items", f"{stats['items']:,}"),
        (
            "events of a user: median, 90%, most",
            " · ".join(f"{quantiles[name]:,}" for name in ("median", "p90", "max")),
        ),
        ("items with half of the training's targets", f"{popularity['items_of_half']:,}"),
    ]
    if popularity["top_shares"]:
        figures += [("targets of the top 10% of the items", percent(popularity["top_shares"]["10%"]))]
    return figures


def sparklines(stats: Mapping[str, Any], width: int = 40) -> dict[str, str]:
    """The events of each type over time as a line of block characters; none where there is no clock."""
    periods = stats["profile"]["periods"]
    if periods is None:
        return {}
    bars = timeline.merged(periods, width)
    return {name: "".join(_block(count, max(counts)) for count in counts) for name, counts in bars.by_type.items()}


def _block(count: int, most: int) -> str:
    return " ▁▂▃▄▅▆▇█"[math.ceil(8 * count / most)] if most else " "


def lengths_plot(histories: Mapping[str, Any]) -> Plot:
    """Users by the number of their events, on a logarithmic axis."""
    bins, quantiles = histories["bins"], histories["quantiles"]
    far = bins[-1]["to"] + 1
    x = logarithmic(1, far)
    ticks = count_ticks(max(one["users"] for one in bins))
    shapes = [
        Shape("bar", box(x(one["from"]), x(one["to"] + 1), one["users"] / ticks[-1]), _bin_hint(one))
        for one in bins
        if one["users"]
    ]
    shapes += [Shape("mark", upright(x(quantiles["median"] + 0.5)), f"median: {quantiles['median']:,}")]
    return Plot(
        title="Users by the number of their events",
        description=f"Histogram on a logarithmic axis from 1 to {far - 1:,} events. Half of the {histories['users']:,} "
        f"users have at most {quantiles['median']:,}, 90% at most {quantiles['p90']:,}; "
        f"the longest history has {quantiles['max']:,}.",
        x=[Tick(x(value + 0.5), short(value)) for value in decade_ticks(1, far - 1)],
        y=[Tick(1 - value / ticks[-1], short(value)) for value in ticks],
        shapes=shapes,
        x_label="events of a user (log)",
        y_label="users",
    )


def _bin_hint(one: Mapping[str, int]) -> str:
    lengths = f"{one['from']:,}" if one["from"] == one["to"] else f"{one['from']:,} to {one['to']:,}"
    return f"{lengths} events: {one['users']:,} users"


def popularity_plot(popularity: Mapping[str, Any]) -> Plot | None:
    """The items' target events by rank, both axes logarithmic; None where fewer than two items have any."""
    curve = popularity["curve"]
    if len(curve) < 2:
        return None
    x, y = logarithmic(1, curve[-1][0]), logarithmic(1, max(curve[0][1], 2))
    points = [(x(rank), y(count)) for rank, count in curve]
    top = popularity["top_shares"]["10%"]
    return Plot(
        title="Popularity: training target events of each item, by rank",
        description=f"Falling curve on logarithmic axes: the most popular of {popularity['items']:,} items has "
        f"{curve[0][1]:,} target events, the last one {curve[-1][1]:,}. The first tenth has {percent(top)} of them.",
        x=[Tick(x(value), short(value)) for value in decade_ticks(1, curve[-1][0])],
        y=[Tick(1 - y(value), short(value)) for value in decade_ticks(1, max(curve[0][1], 2))],
        shapes=[
            Shape("area", f"{line([(0, 0), *points])}V1000Z"),
            Shape("line", line(points)),
            *(
                Shape("dot", f"M{1000 * place_x:.1f} {1000 * (1 - place_y):.1f}h0", f"rank {rank:,}: {count:,} events")
                for (place_x, place_y), (rank, count) in zip(points, curve, strict=True)
            ),
        ],
        x_label="rank of the item (log)",
        y_label="events (log)",
        color=1,
    )
