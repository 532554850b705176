"""What ``metrics.json`` says of parts and of pairs: slices, differences and p-values, as rows for page and terminal.

Enters: the contents of metrics.json; parts of it may be missing in one that an older version wrote. Leaves: rows of
texts and numbers. Surprising choice: a p-value is shown with its bound where the test cannot tell it from less.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

WAYS = {
    "history_length": "events before the target",
    "popularity": "popularity of the target",
    "event": "event type of the target",
    "seen": "target in the history",
}
WAY_MEANINGS = {
    "popularity": "head: among the fifth of the items with most target events in training; cold: without any, or not "
    "in the catalogue",
}
ORDER = ("head", "tail", "cold", "seen before", "new")
"""Groups that have an order of their own; those of numbers go by these, others by their size."""

COMPARED = ("hr", "ndcg", "mrr")
"""Metrics in which two models are compared: with one target a list, recall and map only repeat them."""

DECIMALS = {"novelty": 2, "arp": 1}
SMALLEST_P = 0.0001
"""What the randomisation test can tell from less."""

Metrics = Mapping[str, Any]


def figure(value: float | None, metric: str = "") -> str:
    """A metric's value as it is shown; a dash for None."""
    return "–" if value is None else f"{value:.{DECIMALS.get(metric.split('@')[0], 4)}f}"


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{value:+.4f}".replace("-", "−")


def chance(p_value: float) -> str:
    """A p-value as it is shown."""
    return f"<{SMALLEST_P}" if p_value <= SMALLEST_P else f"{p_value:.4f}" if p_value < 0.1 else f"{p_value:.2f}"


def chances(metrics: Metrics, names: Sequence[str]) -> list[str]:
    """The p-value of the model's difference from each of the baselines ``names``; empty where nothing was tested."""
    tested = metrics.get("significance", {}).get("baselines", {})
    return [chance(tested[name]["p_value"]) if name in tested else "–" for name in names] if tested else []


def tested_metric(metrics: Metrics) -> str:
    """The metric of tests and slices."""
    return str(metrics.get("significance", {}).get("metric", "ndcg@10"))


def slice_tables(metrics: Metrics, names: Sequence[str]) -> list[dict[str, Any]]:
    """One table a way of grouping that divides: its title, and a row for every group with ``tested_metric``.

    A row: name, count, the model's value and interval, and those of the baselines ``names``.
    """
    metric, found = tested_metric(metrics), metrics.get("slices", {})
    tables = []
    for way in (way for way in WAYS if len(found.get(way, ())) > 1):
        order = sorted(found[way], key=lambda name: _place(name, found[way]))
        rows = [_row(name, found[way][name], metric, names) for name in order]
        tables.append({"title": WAYS[way], "meaning": WAY_MEANINGS.get(way), "rows": rows})
    return tables


def slice_lines(metrics: Metrics) -> list[tuple[str, str]]:
    """(way of grouping, the model's value in each group) in one line each."""
    return [
        (
            f"by {table['title']}",
            ", ".join(f"{row['name']} {figure(row['model'])} ({row['count']:,})" for row in table["rows"]),
        )
        for table in slice_tables(metrics, [])
    ]


def against_rows(metrics: Metrics) -> list[dict[str, Any]]:
    """One row a metric: the model's value, the rival's, the difference with its interval, and the p-value."""
    if "against" not in metrics:
        return []
    rival = metrics["against"]
    return [
        {
            "metric": metric,
            "model": metrics["model"][metric],
            "rival": rival["metrics"][metric],
            "difference": signed(one["difference"]),
            "interval": " to ".join(signed(bound) for bound in one["interval"]),
            "p": chance(one["p_value"]),
        }
        for metric, one in sorted(rival["differences"].items(), key=lambda one: _shown_as(one[0]))
        if metric.split("@")[0] in COMPARED and (metric == "hr@1" or not metric.endswith("@1"))
    ]


def _shown_as(metric: str) -> tuple[int, int]:
    family, k = metric.split("@")
    return (COMPARED.index(family) if family in COMPARED else len(COMPARED), int(k))


def _place(name: str, groups: Metrics) -> tuple[int, int]:
    """What groups are sorted by: JSON keeps no order."""
    first = re.match("[0-9]+", name)
    if first:
        return (0, int(first[0]))
    return (1, ORDER.index(name)) if name in ORDER else (2, -groups[name]["count"])


def _row(name: str, group: Metrics, metric: str, names: Sequence[str]) -> dict[str, Any]:
    return {
        "name": name.replace("-", "–"),
        "count": group["count"],
        "model": group["model"][metric],
        "interval": group["intervals"][metric],
        "baselines": [group["baselines"].get(baseline, {}).get(metric) for baseline in names],
    }
