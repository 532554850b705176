"""The part of the evaluation's page that tells how well labels or values were predicted, and the terminal's table.

Enters: the ``pointwise`` part of metrics.json. Leaves: rows of a table, and the points of the calibration curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distft.report.rows import metric_rows
from distft.schema import POINTWISE_METRICS

BASELINES = ("regression", "majority")
MEANINGS = {
    "regression": "The model 'linear' fitted to the same examples and features: a logistic regression of labels, a "
    "linear one of values.",
    "majority": "Says the same of every target: what is most often true, or the mean.",
}
LEFT, RIGHT, TOP, BOTTOM = 44, 352, 12, 170


def baselines(pointwise: Mapping[str, Any]) -> list[str]:
    """Names of the baselines, in the order in which they are shown."""
    return [name for name in BASELINES if name in pointwise["baselines"]]


def table_rows(pointwise: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a metric: its name, the model's value and interval, and the baselines' values."""
    return metric_rows(pointwise, POINTWISE_METRICS, baselines(pointwise))


def calibration_plot(pointwise: Mapping[str, Any]) -> dict[str, Any] | None:
    """Places of the calibration curve in the page's plot, and its words; None where there is none."""
    bins: Sequence[Mapping[str, Any]] = pointwise.get("calibration", ())
    if not bins:
        return None
    places = [
        (
            round(LEFT + one["predicted"] * (RIGHT - LEFT), 1),
            round(BOTTOM - one["observed"] * (BOTTOM - TOP), 1),
            f"predicted {one['predicted']:.2f}, observed {one['observed']:.2f}, {one['count']:,} targets",
        )
        for one in bins
    ]
    return {"points": " ".join(f"{x},{y}" for x, y, _ in places), "dots": places}
