"""The values of events (prices, ratings): what is missing becomes 0, and what lies beyond quantiles is set to them.

Enters: the values of the kept events, NaN where a log gave none. Leaves: their bounds, exact over the whole log and
learned from what trains alone, and the values as the shards hold them. Nothing is counted where no job asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from distft.data.numbers import quantiles
from distft.data.partition import load_arrays, save_arrays
from distft.storage import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

Bounds = tuple[float, float]


def count_values(work: Storage, name: str, value: NDArray[np.float32], trains: NDArray[np.bool_]) -> None:
    """Writes the distinct values, and how often each stands among all events and among those that train."""
    there = ~np.isnan(value)
    values, places = np.unique(value[there], return_inverse=True)
    all_, train = (
        np.bincount(places, minlength=len(values)),
        np.bincount(places, weights=trains[there], minlength=len(values)).astype(np.int64),
    )
    save_arrays(work, name, {"values": values, "all": all_, "train": train})


def learn_bounds(
    work: Storage, names: Sequence[str], shares: Bounds, known: Bounds | None
) -> tuple[Bounds | None, dict[str, Any]]:
    """(bounds, what ``stats.json`` says of them); None where no event that trains has a value. ``known``: use these."""
    parts = [pl.DataFrame(load_arrays(work, name, ["values", "all", "train"])) for name in names]
    counts = pl.concat(parts).group_by("values").agg(pl.col("all", "train").sum()).sort("values")
    train = counts.filter(pl.col("train") > 0)
    if known is None and not len(train):
        return None, {"clipped": 0}
    bounds = known or quantiles(train["values"].to_numpy(), train["train"].to_numpy(), shares)
    beyond = counts.filter(~pl.col("values").is_between(*bounds))
    return bounds, {"low": bounds[0], "high": bounds[1], "clipped": int(beyond["all"].sum())}


def settled(value: NDArray[np.float32], bounds: Bounds | None) -> NDArray[np.float32]:
    """The values as they are written."""
    clipped = value if bounds is None else np.clip(value, np.float32(bounds[0]), np.float32(bounds[1]))
    return np.where(np.isnan(clipped), np.float32(0), clipped)
