"""Rows of a table of metrics: the model's value and interval, and those of the baselines beside it.

Enters: a part of metrics.json with ``model``, ``intervals`` and ``baselines``. Leaves: a dictionary a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def metric_rows(part: Mapping[str, Any], names: Iterable[str], baselines: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each of ``names`` that the model has; None where an interval or a baseline is not defined."""
    return [
        {
            "metric": name,
            "model": part["model"][name],
            "interval": part["intervals"].get(name),
            "baselines": [part["baselines"][baseline].get(name) for baseline in baselines],
        }
        for name in names
        if name in part["model"]
    ]
