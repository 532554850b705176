"""Which records of a log are read at all: those whose columns have, or do not have, certain values.

Enters: ``Records`` in the log's own words. Leaves: the chosen ones, and how many were left out. Surprising choice: it
comes before anything is typed, so that what belongs to another market is neither kept nor rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distft.data.sources.records import Records
from distft.data.sources.typed import id_texts


@dataclass(frozen=True)
class Selection:
    """Column → values: a record must have one of each in ``where``, and none in ``where_not``."""

    where: Mapping[str, tuple[str, ...]]
    where_not: Mapping[str, tuple[str, ...]]

    @property
    def columns(self) -> dict[str, str]:
        """What a message says of a column → the column."""
        keys = (("where", self.where), ("where_not", self.where_not))
        return {f"{key}.{name}": name for key, names in keys for name in names}

    def of(self, records: Records) -> tuple[Records, int]:
        """The chosen records, and the number of those left out; records that could not be taken apart stay."""
        chosen = np.ones(len(records.row), np.bool_)
        for name, values in self.where.items():
            chosen &= _has_one(records.columns[name], values)
        for name, values in self.where_not.items():
            chosen &= ~_has_one(records.columns[name], values)
        places = np.flatnonzero(chosen)
        if len(places) == len(chosen):
            return records, 0
        columns, raw = records.columns.take(places), records.raw
        kept = Records(columns, records.row[places], lambda some: raw(places[some]), records.rejected)
        return kept, len(chosen) - len(places)


def _has_one(column: pa.ChunkedArray, values: tuple[str, ...]) -> NDArray[np.bool_]:
    """True where the column holds one of the values, a missing one being the empty text."""
    if pa.types.is_binary(column.type):
        texts, value_set = column, pa.array([value.encode() for value in values], pa.binary())
    else:
        texts = id_texts(pl.Series(pl.from_arrow(column.combine_chunks()))).to_arrow().cast(pa.string())
        value_set = pa.array(values, pa.string())
    found = pc.is_in(texts, value_set=value_set)
    if "" in values:
        found = pc.or_(found, pc.is_null(texts))
    return np.asarray(found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy())
