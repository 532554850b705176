"""The work of ``distft prepare`` on the log of ``biglog.py``, written directly in Polars.

Run:  python benchmarks/direct/with_polars.py LOG OUT

Purchases are predicted, leave-one-out, with a 5-core of users and items. Leaves train, valid and test as Parquet in
``OUT`` with the content of distft's shards, and the vocabulary. It knows this log: no rejects to account for, no
queries, no checksums, one machine, all of the log in memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl

EVENTS = ("view", "cart", "purchase")
PURCHASE, MIN_EVENTS, MAX_CONTEXT, MAX_ROW_EVENTS = 3, 5, 1000, 10_000
KEYS = ["user", "time_ms"]


def read(log: str) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
    """(events as codes in order of user and time, user ids and item ids by code)."""
    codes = {name: place + 1 for place, name in enumerate(EVENTS)}
    events = (
        pl.scan_parquet(f"{log}/*.parquet")
        .filter(pl.col("user_id").is_not_null() & pl.col("item_id").is_not_null() & pl.col("timestamp").is_not_null())
        .select(
            pl.col("user_id").cast(pl.Categorical(pl.Categories("users"))),
            pl.col("item_id").cast(pl.Categorical(pl.Categories("items"))),
            pl.col("event").replace_strict(codes, return_dtype=pl.Int8),
            time_ms="timestamp",
            value=pl.col("value").cast(pl.Float32),
        )
        .collect()
    )
    users, items = (_categories(events[name]) for name in ("user_id", "item_id"))
    coded = events.select(
        pl.col("user_id").to_physical().alias("user"), pl.col("item_id").to_physical().alias("item"),
        "event", "time_ms", "value",
    )  # fmt: skip
    return coded.sort(KEYS, maintain_order=True), users, items


def _categories(column: pl.Series) -> pl.Series:
    """The texts of a categorical column by their code."""
    known = column.unique()
    return pl.DataFrame({"code": known.to_physical(), "text": known.cast(pl.String)}).sort("code")["text"]


def without_duplicates(events: pl.DataFrame) -> pl.DataFrame:
    """Only events of the same user and moment can be equal."""
    same = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in KEYS).fill_null(False)
    crowded = same | same.shift(-1, fill_value=False)
    events = events.with_columns(crowded=crowded)
    again = events.with_row_index().filter("crowded").filter(~pl.struct(pl.all().exclude("index")).is_first_distinct())
    return (
        events.drop("crowded").with_row_index().filter(~pl.col("index").is_in(again["index"].implode())).drop("index")
    )


def k_core(events: pl.DataFrame) -> pl.DataFrame:
    size = -1
    while len(events) != size:
        size = len(events)
        for name in ("user", "item"):
            few = events.group_by(name).len().filter(pl.col("len") < MIN_EVENTS)[name]
            if len(few):
                events = events.filter(~pl.col(name).is_in(few.implode()))
    return events


def split(events: pl.DataFrame) -> pl.DataFrame:
    """``part``: 0 train, 1 from the last target but one, 2 from the last one; ``place`` within the user."""
    is_target = pl.col("event") == PURCHASE
    return (
        events.with_columns(
            place=pl.int_range(pl.len(), dtype=pl.Int32).over("user"),
            after=is_target.sum().over("user") - is_target.cum_sum().over("user"),
            targets=is_target.sum().over("user"),
        )
        .with_columns(
            part=pl.when((pl.col("targets") < 3) | (pl.col("after") > 1))
            .then(0)
            .otherwise(2 - pl.col("after"))
            .cast(pl.Int8)
        )
        .drop("after", "targets")
    )


def encode(events: pl.DataFrame, items: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    counted = events.group_by("item").agg(
        targets=((pl.col("event") == PURCHASE) & (pl.col("part") == 0)).sum(), known=(pl.col("part") < 2).any()
    )
    vocabulary = (
        counted.filter("known")
        .drop("known")
        .with_columns(item_id=items.gather(counted.filter("known")["item"]))
        .sort(["targets", "item_id"], descending=[True, False])
        .with_columns(item_row=pl.int_range(2, pl.len() + 2, dtype=pl.Int32))
    )
    rows = vocabulary.select("item", "item_row")
    table = (
        pl.DataFrame({"item": pl.int_range(len(items), dtype=pl.UInt32, eager=True)})
        .join(rows, on="item", how="left", maintain_order="left")["item_row"]
        .fill_null(1)
    )
    return events.with_columns(item_row=table.gather(events["item"])), vocabulary


def rows(events: pl.DataFrame, keys: list[str], users: pl.Series) -> pl.DataFrame:
    grouped = events.group_by(keys, maintain_order=True).agg("item_row", "event", "time_ms", "value")
    return grouped.with_columns(
        user_id=users.gather(grouped["user"]),
        query=pl.col("item_row").list.eval(pl.lit([], pl.List(pl.Int32))),
    )


def write(out: Path, name: str, rows: pl.DataFrame) -> None:
    rows.rename({"user": "user_row"}).write_parquet(
        out / f"{name}.parquet", compression="zstd", compression_level=1, row_group_size=1 << 14
    )


def main(log: str, out: Path) -> None:
    out.mkdir(parents=True)
    events, users, items = read(log)
    num_rows = len(events)
    events = without_duplicates(events)
    num_distinct = len(events)
    events = k_core(events)
    num_kept = len(events)
    events, vocabulary = encode(split(events), items)
    vocabulary.select("item_id", "targets", "item_row").write_parquet(out / "items.parquet")
    train = events.filter(pl.col("part") == 0).with_columns(part=pl.col("place") // MAX_ROW_EVENTS)
    counts = {"rows": num_rows, "duplicates": num_rows - num_distinct, "k_core": num_distinct - num_kept}
    write(out, "train", rows(train, ["user", "part"], users))
    for name, part in (("valid", 1), ("test", 2)):
        first = (pl.col("part") == part) & (pl.col("event") == PURCHASE)
        target = events.filter(first).select(
            "user", target_place="place", target_item="item_row", target_event="event",
            target_time_ms="time_ms", target_value="value",
        )  # fmt: skip
        places = pl.DataFrame({"user": pl.int_range(len(users), dtype=pl.UInt32, eager=True)}).join(
            target, on="user", how="left", maintain_order="left"
        )["target_place"]
        end = places.gather(events["user"])
        shown = events.filter((pl.col("place") < end) & (pl.col("place") >= end - MAX_CONTEXT))
        found = rows(shown, ["user"], users).with_columns(part=pl.lit(0, pl.Int32))
        found = found.join(target.drop("target_place"), on="user", how="left", maintain_order="left")
        leaks = found.filter(pl.col("time_ms").list.max() >= pl.col("target_time_ms"))
        if len(leaks):
            sys.exit(f"{len(leaks)} rows show their target")
        counts[name] = len(found)
        write(out, name, found)
    (out / "counts.json").write_text(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
