"""The encoder of a dataset, made from the counts of all partitions.

Enters: the count files of the partitions, feature tables, and the encoder that the new one continues, if any. Leaves:
an ``Encoder``. Runs on the driver, on arrays as large as the vocabularies, not as the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from distft.data.encode import Encoder
from distft.data.features import FeatureColumn, FeatureSpec, encode_features, keep_rows
from distft.data.parquet import write_table
from distft.data.partition import load_arrays
from distft.data.sources.base import FeatureTable
from distft.data.sources.tables import read_features
from distft.schema import ITEM_ID, NUM_RESERVED, USER_ID
from distft.storage import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from distft.data.sources.base import Source
    from distft.job import Job
    from distft.sections.features import Encode


@dataclass(frozen=True)
class Start:
    """What is settled of an encoder before a log is read; ``base``: the encoder that it continues."""

    event_names: tuple[str, ...]
    has_clock: bool
    base: Encoder | None = None


def item_features(job: Job, sources: Sequence[Source]) -> FeatureTable | None:
    """The job's ``data.items``, or else those of the first source that has any."""
    if job.data.items is not None:
        return read_features(job.data.items, ITEM_ID, job.data.clean.max_rejected_share)
    return next((table for source in sources if (table := source.items()) is not None), None)


def user_features(job: Job, sources: Sequence[Source]) -> FeatureTable | None:
    """The job's ``data.users``, or else those of the first source that has any."""
    if job.data.users is not None:
        return read_features(job.data.users, USER_ID, job.data.clean.max_rejected_share)
    return next((table for source in sources if (table := source.users()) is not None), None)


def write_rejected(dataset: Storage, tables: Mapping[str, FeatureTable | None]) -> None:
    """``rejected_features/<table>.parquet``: the records of the feature tables that were not used, if there are any.

    They are no rows of the logs, whose own lie in ``rejected/``.
    """
    for name, table in tables.items():
        if table is not None and table.rejected is not None and len(table.rejected):
            (dataset / "rejected_features").make()
            write_table(dataset, f"rejected_features/{name}.parquet", table.rejected)


def count_items(work: Storage, names: Sequence[str]) -> pl.DataFrame:
    """Every item of the log with its counts: ``targets`` and ``train`` of the training part (target events, and all),
    ``valid`` and ``test`` (targets); ``known``: whether it has a row.
    """
    columns = ["item_ids", "targets", "train", "valid", "test", "known"]
    parts = [pl.DataFrame(load_arrays(work, name, columns)) for name in names]
    items = pl.concat(part.with_columns(pl.col("item_ids").cast(pl.String)) for part in parts)
    counts = pl.col("targets", "train", "valid", "test")
    return items.group_by("item_ids").agg(counts.sum(), pl.col("known").any())


def build_items(counted: pl.DataFrame, base: Encoder | None = None) -> pl.DataFrame:
    """(item_ids, targets, train) of every item with a row: the base's as they are, then by targets (descending), id."""
    summed = counted.select("item_ids", "targets", "train", "known")
    known = summed.filter("known").drop("known").sort(["targets", "item_ids"], descending=[True, False])
    if base is None:
        return known
    old = pl.DataFrame({"item_ids": base.item_ids[NUM_RESERVED:]}, schema={"item_ids": pl.String})
    kept = old.join(summed.drop("known"), on="item_ids", how="left", maintain_order="left").fill_null(0)
    return pl.concat([kept, known.filter(~pl.col("item_ids").is_in(old["item_ids"].implode()))])


def build_words(
    work: Storage, names: Sequence[str], min_count: int, base: Sequence[str] = ("",) * NUM_RESERVED
) -> tuple[str, ...]:
    """The words of the token rows: the base's as they are, then by count (descending), then by the word."""
    parts = [pl.DataFrame(load_arrays(work, name, ["words", "word_counts"])) for name in names]
    words = pl.concat(part.with_columns(pl.col("words").cast(pl.String)) for part in parts)
    counts = words.group_by("words").agg(pl.col("word_counts").sum()).filter(pl.col("word_counts") >= min_count)
    ranked = counts.sort(["word_counts", "words"], descending=[True, False])
    known = set(base)
    return (*base, *(word for word in ranked["words"].to_list() if word not in known))


def build_encoder(
    job: Job, start: Start, counted: pl.DataFrame, counts: tuple[Storage, Sequence[str]],
    features: FeatureTable | None, users: tuple[FeatureSpec, ...],
) -> Encoder:  # fmt: skip
    """The encoder; ``counted``: the items; ``counts``: the work folder and the names of its count files."""
    base = start.base
    items = build_items(counted, base)
    ids = np.array([""] * NUM_RESERVED + items["item_ids"].to_list(), np.object_)
    reserved = np.zeros(NUM_RESERVED, np.int64)
    trained = np.concatenate([reserved, items["train"].to_numpy()]) > 0
    columns: tuple[FeatureColumn, ...] = ()
    if features is not None:
        columns = _item_columns(features, ids, trained, job.data.encode, base)
    return Encoder(
        event_names=start.event_names,
        target_events=job.data.target_events,
        has_clock=start.has_clock,
        item_ids=ids,
        counts=np.concatenate([reserved, items["targets"].to_numpy()]).astype(np.int64),
        token_words=build_words(*counts, job.data.min_token_count, *([base.token_words] if base else [])),
        features=columns,
        user_features=users,
        label_at_least=job.data.label.value_at_least if job.data.label else None,
        ancestors=(*base.ancestors, base.as_ancestor()) if base else (),
    )


def _item_columns(
    table: FeatureTable, ids: NDArray[np.object_], trained: NDArray[np.bool_], encode: Encode, base: Encoder | None
) -> tuple[FeatureColumn, ...]:
    """The items' features: today's where the table has them, else those that the base knew."""
    if base is None:
        return encode_features(table, ids, trained, NUM_RESERVED, encode)
    old = {column.spec.name: column for column in base.features}
    specs = {name: column.spec for name, column in old.items()}
    columns = encode_features(table, ids, trained, NUM_RESERVED, encode, specs)
    keys = table.table[table.key].combine_chunks().cast(pa.string())
    absent = pc.invert(pc.is_in(pa.array(base.item_ids, pa.string()), value_set=keys)).to_numpy(zero_copy_only=False)
    return tuple(keep_rows(column, old[column.spec.name], absent) for column in columns)


def encode_users(
    table: FeatureTable, ids: NDArray[np.object_], trains: NDArray[np.bool_], encode: Encode, base: Encoder | None
) -> tuple[FeatureColumn, ...]:
    """The users' features, aligned with user rows; texts are left out, nothing shows them."""
    learned = {spec.name: spec for spec in base.user_features} if base else None
    columns = encode_features(table, ids, trains, 0, encode, learned)
    return tuple(column for column in columns if column.spec.kind != "text")


def write_users(dataset: Storage, columns: Iterable[FeatureColumn]) -> None:
    """``users.parquet``: one row a user row, one column a feature."""
    arrays = {column.spec.name: column.to_arrow() for column in columns}
    size = len(next(iter(arrays.values()))) if arrays else 0
    write_table(dataset, "users.parquet", pa.table({"user_row": pa.array(np.arange(size, dtype=np.int32)), **arrays}))
