"""Features of items and users → codes and scaled numbers, with the vocabularies and statistics to do so again.

Enters: a ``FeatureTable`` in the shop's words, the job's ``data.encode``, and the ids that have rows. Leaves: one
``FeatureColumn`` a feature, aligned with the rows.
Where a spec is given that was learned before (``data.vocabulary.from``), its statistics are used as they are, and its
categories keep their codes: new ones come after them.

Surprising choice: a column tells what is known and no more: a missing number is null in its file, and an item with
five categories has five codes. What a model is given instead (a mean, the first category, a column for each
category) is made when the catalogue is, from the spec, so that training and serving cannot differ in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distft.data.numbers import learn, outside, scaled, substitute
from distft.errors import DataError
from distft.schema import NUM_RESERVED, PAD, UNKNOWN, Feature
from distft.sections.features import Encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from distft.data.sources.base import FeatureTable


LEARNED = {"learned": True}


@dataclass(frozen=True, eq=False)
class FeatureSpec:
    """How one feature is encoded. ``vocabulary`` holds the category of each code (two reserved ones first).

    A field that is ``LEARNED`` comes from the data; all others are settings (``data.encode``), which must stay as they
    are for a vocabulary to be continued. ``low`` and ``high``: the smallest and largest raw number that trains, within
    the quantiles of ``clip``.
    """

    name: str
    kind: Literal["category", "number", "text"]
    multiple: bool = False
    form: str = "label"
    scale: str = "standard"
    clip: tuple[float, float] | None = None
    missing: str = ""
    mean: float = field(default=0.0, metadata=LEARNED)
    std: float = field(default=1.0, metadata=LEARNED)
    low: float = field(default=0.0, metadata=LEARNED)
    high: float = field(default=1.0, metadata=LEARNED)
    vocabulary: tuple[str, ...] = field(default=(), metadata=LEARNED)

    def settings(self) -> dict[str, Any]:
        """What determines the encoding beside the data."""
        return {one.name: getattr(self, one.name) for one in fields(self) if not one.metadata.get("learned")}

    def describe(self) -> dict[str, Any]:
        """The spec without its vocabulary, as JSON: the fields that its kind uses."""
        names = {
            "category": ("multiple", "form", "missing"),
            "number": ("scale", "clip", "missing", "mean", "std", "low", "high"),
            "text": (),
        }[self.kind]
        value = {"name": self.name, "kind": self.kind, **{name: getattr(self, name) for name in names}}
        return value | ({"size": len(self.vocabulary)} if self.kind == "category" else {})

    @classmethod
    def described(cls, value: Mapping[str, Any], vocabulary: tuple[str, ...]) -> FeatureSpec:
        """The spec that ``describe`` gave."""
        known = {one.name: value[one.name] for one in fields(cls) if one.name in value}
        clip = known.get("clip")
        return cls(**known | {"clip": tuple(clip) if clip else None, "vocabulary": vocabulary})


@dataclass(frozen=True, eq=False)
class FeatureColumn:
    """One feature of every row.

    A category: row i's codes are ``codes[offsets[i]:offsets[i + 1]]``, at least one (PAD or UNKNOWN where there
    is none). A number: ``values`` float32, scaled, NaN where there is none; ``num_clipped`` of them lay outside of the
    range. A text: ``texts``, "" where there is none.
    """

    spec: FeatureSpec
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    codes: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    values: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    texts: NDArray[np.object_] = field(default_factory=lambda: np.zeros(0, np.object_))
    num_clipped: int = 0

    def absent(self) -> NDArray[np.bool_]:
        """Rows without a number, or without a category; PAD's and UNKNOWN's among them."""
        return np.isnan(self.values) if self.spec.kind == "number" else self.first_codes() < NUM_RESERVED

    def inputs(self) -> list[Feature]:
        """What a model is given of the feature of items, whose first row is PAD. A text gives nothing.

        A missing number becomes the spec's substitute, with a second feature that is 1 there if it is to be told.
        """
        name, spec = self.spec.name, self.spec
        if spec.kind == "category":
            codes = self.first_codes() if spec.form == "label" else self.padded_codes()
            if spec.missing == "zero":
                codes = np.where(codes == UNKNOWN, np.int32(PAD), codes)
            return [Feature(name, codes=codes, size=len(spec.vocabulary))]
        if spec.kind == "text":
            return []
        absent = self.absent()
        absent[PAD] = False
        values = np.where(absent, substitute(spec), np.nan_to_num(self.values)).astype(np.float32)
        features = [Feature(name, values=values)]
        if spec.missing == "indicator":
            features.append(Feature(f"{name} is missing", values=absent.astype(np.float32)))
        return features

    def first_codes(self) -> NDArray[np.int32]:
        """The first category of every row."""
        return self.codes[self.offsets[:-1]]

    def padded_codes(self) -> NDArray[np.int32]:
        """All categories of every row [rows, most of one row], PAD behind them."""
        lengths = np.diff(self.offsets)
        padded = np.full((len(lengths), int(lengths.max(initial=1))), PAD, np.int32)
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = self.codes
        return padded

    def matching(self, wanted: set[str]) -> NDArray[np.bool_]:
        """Rows with at least one of the ``wanted`` categories."""
        return self.having(np.array([value in wanted for value in self.spec.vocabulary], np.bool_))

    def having(self, wanted_V: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Rows with at least one of the codes that are ``wanted``; the reserved ones are not."""
        wanted_V = wanted_V.copy()
        wanted_V[:NUM_RESERVED] = False
        hits = np.concatenate([[0], np.cumsum(wanted_V[self.codes])])
        return np.asarray(hits[self.offsets[1:]] > hits[self.offsets[:-1]])

    def to_arrow(self) -> pa.Array:
        """The column as it is stored: list<int32>, int32, float or string."""
        if self.spec.kind == "number":
            return pa.array(self.values, pa.float32(), from_pandas=True)
        if self.spec.kind == "text":
            return pa.array(self.texts, pa.string())
        if self.spec.multiple:
            return pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.codes, pa.int32()))
        return pa.array(self.codes, pa.int32())

    @classmethod
    def from_arrow(cls, spec: FeatureSpec, column: pa.ChunkedArray) -> FeatureColumn:
        """The column read back."""
        array = column.combine_chunks()
        if spec.kind == "number":
            return cls(spec, values=array.to_numpy(zero_copy_only=False).astype(np.float32))
        if spec.kind == "text":
            return cls(spec, texts=array.to_numpy(zero_copy_only=False))
        if spec.multiple:
            return cls(spec, array.offsets.to_numpy().astype(np.int64), array.values.to_numpy().astype(np.int32))
        return cls(spec, np.arange(len(array) + 1, dtype=np.int64), array.to_numpy().astype(np.int32))


def plan_features(table: FeatureTable, encode: Encode) -> tuple[FeatureSpec, ...]:
    """The specs of a table's features, with nothing learned yet."""
    names = [name for name in table.table.column_names if name != table.key]
    return tuple(_planned(table, name, encode) for name in names)


def _planned(table: FeatureTable, name: str, encode: Encode) -> FeatureSpec:
    if name in table.text:
        return FeatureSpec(name, "text")
    if name in table.numeric:
        number = encode.number(name)
        return FeatureSpec(name, "number", scale=number.scale, clip=number.clip, missing=number.missing)
    kind = table.table.schema.field(name).type
    multiple = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    category = encode.category(name)
    return FeatureSpec(name, "category", multiple, category.form, missing=category.missing)


def encode_features(
    table: FeatureTable, ids: NDArray[np.object_], counted: NDArray[np.bool_], reserved: int, encode: Encode,
    learned: Mapping[str, FeatureSpec] | None = None,
) -> tuple[FeatureColumn, ...]:  # fmt: skip
    """One column for each feature of ``table``, aligned with ``ids``.

    The first ``reserved`` rows (PAD and UNKNOWN of a vocabulary) get the code of their own row and no number.
    Statistics come from the rows where ``counted``, or from ``learned``, the spec of every feature by its name. Raises
    DataError if none of ``ids`` is in the table.
    """
    keys = table.table[table.key].combine_chunks().cast(pa.string())
    index = pc.index_in(pa.array(ids, pa.string()), value_set=keys)
    if index.null_count == len(index) and len(keys) and len(ids) > reserved:
        raise _strangers(table.key, keys, ids[reserved:])
    if reserved:
        mask = np.arange(len(ids)) < reserved
        index = pc.if_else(pa.array(mask), pa.scalar(None, pa.int32()), index)
    columns = []
    for spec in plan_features(table, encode):
        column = table.table[spec.name].combine_chunks().take(index)
        if spec.kind == "number":
            raw = pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy(zero_copy_only=False)
            columns.append(_number(learned[spec.name] if learned else learn(spec, raw, counted), raw))
        elif spec.kind == "text":
            texts = pc.fill_null(column.cast(pa.string()), "").to_numpy(zero_copy_only=False)
            columns.append(FeatureColumn(spec, texts=texts))
        else:
            columns.append(_category(learned[spec.name] if learned else spec, column, reserved))
    return tuple(columns)


def keep_rows(column: FeatureColumn, base: FeatureColumn, absent: NDArray[np.bool_]) -> FeatureColumn:
    """The column with ``base``'s values in those of the base's rows that are ``absent`` from today's table."""
    today, size = column.to_arrow(), len(absent)
    kept = pc.if_else(pa.array(absent), base.to_arrow(), today[:size])
    both = FeatureColumn.from_arrow(column.spec, pa.chunked_array([pa.concat_arrays([kept, today[size:]])]))
    return replace(both, num_clipped=column.num_clipped)


def _strangers(key: str, keys: pa.Array, ids: NDArray[np.object_]) -> DataError:
    of_table, of_log = (", ".join(map(repr, some[:3].tolist())) for some in (keys, ids))
    what = f"None of the {len(keys):,} {key}s of the feature table is in the log: it has {of_table}, the log {of_log}"
    part = key.removesuffix("_id") + "s"
    return DataError(what, "the same ids in both", f"Correct the column that data.{part} or the log maps as {key}.")


def _number(spec: FeatureSpec, raw: NDArray[np.float64]) -> FeatureColumn:
    raw = np.where(np.isfinite(raw), raw, np.nan)
    return FeatureColumn(spec, values=scaled(spec, raw), num_clipped=int(outside(spec, raw).sum()))


def _category(spec: FeatureSpec, column: pa.Array, reserved: int) -> FeatureColumn:
    if spec.multiple:
        lists = pc.fill_null(column.cast(pa.list_(pa.string())), [])
        flat, parents = pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    else:
        flat, parents = column.cast(pa.string()), np.arange(len(column))
    present = pc.fill_null(pc.greater(pc.utf8_length(flat), 0), False).to_numpy(zero_copy_only=False)
    flat, parents = flat.filter(pa.array(present)), parents[present]
    known = pa.array(spec.vocabulary[NUM_RESERVED:], pa.string())
    found_here = pc.unique(flat)
    added = found_here.filter(pc.invert(pc.is_in(found_here, value_set=known))).sort()
    vocabulary = pa.concat_arrays([known, added])
    codes = pc.index_in(flat, value_set=vocabulary).to_numpy(zero_copy_only=False).astype(np.int32) + NUM_RESERVED
    found = np.bincount(parents, minlength=len(column))
    offsets = np.concatenate([[0], np.cumsum(np.maximum(found, 1))]).astype(np.int64)
    out = np.full(offsets[-1], UNKNOWN, np.int32)
    filled = np.repeat(found > 0, np.maximum(found, 1))
    out[filled] = codes
    if reserved:
        out[offsets[PAD]] = PAD
    return FeatureColumn(replace(spec, vocabulary=("", "", *vocabulary.to_pylist())), offsets, out)
