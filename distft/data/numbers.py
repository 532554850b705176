"""Numeric features: what is learned of them, and raw numbers → scaled ones.

Enters: raw numbers, NaN where there is none. Leaves: a ``FeatureSpec`` with its statistics, and float32 in its scale.
Statistics are those of the rows that train. A feature that is constant there tells nothing and is 0 throughout.

Surprising choice: a quantile is a value that occurs, never one between two. So the quantiles that numbers are clipped
at are the smallest and largest number after clipping, and equal logs give equal bytes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from distft.data.features import FeatureSpec

EPSILON = float(np.finfo(np.float32).eps)
LARGEST = float(np.finfo(np.float32).max)
"""What is larger is no number of a shop: it would not fit the column that it is stored in."""


def quantiles(
    values: NDArray[np.floating], counts: NDArray[np.int64], shares: tuple[float, float]
) -> tuple[float, float]:
    """(low, high): the smallest values that at least these shares of the numbers are not above.

    ``values`` stand ``counts`` times each; there must be at least one.
    """
    order = np.argsort(values)
    below = np.cumsum(counts[order])
    ranks = [max(1, int(np.ceil(round(share * int(below[-1]), 6)))) for share in shares]
    low, high = (float(values[order[np.searchsorted(below, rank)]]) for rank in ranks)
    return low, high


def learn(spec: FeatureSpec, raw: NDArray[np.float64], counted: NDArray[np.bool_]) -> FeatureSpec:
    """The spec with the statistics of the numbers in the rows where ``counted``; all 0 if there are none."""
    sample = raw[np.isfinite(raw) & counted]
    if not len(sample):
        return replace(spec, mean=0.0, std=0.0, low=0.0, high=0.0)
    low, high = quantiles(sample, np.ones(len(sample), np.int64), spec.clip or (0.0, 1.0))
    if spec.clip:
        sample = np.clip(sample, low, high)
    if low == high:
        return replace(spec, mean=low, std=0.0, low=low, high=high)
    return replace(spec, mean=float(sample.mean()), std=float(sample.std()), low=low, high=high)


def outside(spec: FeatureSpec, raw: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where a number is set to the nearest end of the range: of the quantiles, or of a scale that has ends."""
    if spec.clip is None and spec.scale == "standard":
        return np.zeros(len(raw), np.bool_)
    return np.asarray((raw < spec.low) | (raw > spec.high))


def scaled(spec: FeatureSpec, raw: NDArray[np.float64]) -> NDArray[np.float32]:
    """The numbers in the scale of the spec; NaN stays NaN."""
    if spec.low == spec.high:
        return np.where(np.isnan(raw), np.nan, 0.0).astype(np.float32)
    if spec.clip is not None or spec.scale != "standard":
        raw = np.clip(raw, spec.low, spec.high)
    if spec.scale == "standard":
        return ((raw - spec.mean) / spec.std).astype(np.float32)
    unit = (raw - spec.low) / (spec.high - spec.low)
    return (unit if spec.scale == "unit" else 2 * unit - 1).astype(np.float32)


def unscaled(spec: FeatureSpec, value: float) -> float | None:
    """The raw number that was scaled to ``value``, to as many digits as float32 has kept of it; None for NaN.

    A number outside of the range that it was clipped to is the end of that range.
    """
    if math.isnan(value):
        return None
    unit, zero = {
        "standard": (spec.std, spec.mean),
        "unit": (spec.high - spec.low, spec.low),
        "symmetric": ((spec.high - spec.low) / 2, (spec.high + spec.low) / 2),
    }[spec.scale]
    if spec.low == spec.high:
        return spec.low
    step = EPSILON * unit * max(abs(value), 1.0)
    return round(value * unit + zero, math.floor(-math.log10(step)))


def substitute(spec: FeatureSpec) -> np.float32:
    """What stands where a number is missing, in the scale of the spec: its mean, or 0 of the shop's own unit."""
    return np.float32(scaled(spec, np.array([0.0 if spec.missing == "zero" else spec.mean]))[0])
