"""The work of ``distft prepare`` on the log of ``biglog.py``, written directly in pandas.

Run:  python benchmarks/direct/with_pandas.py LOG OUT

The same as ``with_polars.py``, with the same content of the same files, as one writes it with pandas' own means:
categories for ids, ``sort_values``, ``duplicated``, ``groupby``, and lists made by ``agg(list)``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

EVENTS = ("view", "cart", "purchase")
PURCHASE, MIN_EVENTS, MAX_CONTEXT, MAX_ROW_EVENTS = 3, 5, 1000, 10_000
LISTS = ["item_row", "event", "time_ms", "value"]
TYPES = {
    "user_row": pa.int32(), "user_id": pa.string(), "part": pa.int32(), "item_row": pa.list_(pa.int32()),
    "event": pa.list_(pa.int8()), "time_ms": pa.list_(pa.int64()), "query": pa.list_(pa.list_(pa.int32())),
    "value": pa.list_(pa.float32()),
}  # fmt: skip
TARGETS = {
    "target_item": pa.int32(), "target_event": pa.int8(), "target_time_ms": pa.int64(), "target_value": pa.float32(),
}  # fmt: skip


def read(log: str) -> tuple[pd.DataFrame, pd.Index, pd.Index]:
    """(distinct events as codes in order of user and time, user ids and item ids by code)."""
    events = pd.concat([pd.read_parquet(path) for path in sorted(Path(log).glob("*.parquet"))], ignore_index=True)
    events = events.dropna(subset=["user_id", "item_id", "timestamp"])
    user, users = pd.factorize(events["user_id"])
    item, items = pd.factorize(events["item_id"])
    coded = pd.DataFrame({"user": user.astype(np.int32), "item": item.astype(np.int32)})
    coded["event"] = events["event"].map({name: place + 1 for place, name in enumerate(EVENTS)}).astype(np.int8)
    coded["time_ms"], coded["value"] = events["timestamp"], events["value"].astype(np.float32)
    coded = coded.sort_values(["user", "time_ms"], kind="stable", ignore_index=True)
    return coded[~coded.duplicated()], pd.Index(users), pd.Index(items)


def k_core(events: pd.DataFrame) -> pd.DataFrame:
    size = -1
    while len(events) != size:
        size = len(events)
        for name in ("user", "item"):
            counts = events[name].value_counts()
            few = counts.index[counts < MIN_EVENTS]
            if len(few):
                events = events[~events[name].isin(few)]
    return events.reset_index(drop=True)


def split(events: pd.DataFrame) -> pd.DataFrame:
    """``part``: 0 train, 1 from the last target but one, 2 from the last one; ``place`` within the user."""
    is_target = events["event"] == PURCHASE
    by_user = is_target.groupby(events["user"], sort=False)
    targets = by_user.transform("sum")
    after = targets - by_user.cumsum()
    events["place"] = events.groupby("user", sort=False).cumcount()
    events["part"] = np.where((targets < 3) | (after > 1), 0, 2 - after).astype(np.int8)
    return events


def encode(events: pd.DataFrame, items: pd.Index) -> pd.DataFrame:
    trained = events[(events["event"] == PURCHASE) & (events["part"] == 0)]["item"].value_counts()
    known = events[events["part"] < 2]["item"].unique()
    table = pd.DataFrame({"targets": trained.reindex(known, fill_value=0), "item_id": items[known]})
    table = table.sort_values(["targets", "item_id"], ascending=[False, True])
    row = np.full(len(items), 1, np.int32)
    row[table.index] = np.arange(2, len(table) + 2)
    events["item_row"] = row[events["item"]]
    return events


def rows(events: pd.DataFrame, keys: list[str], users: pd.Index) -> pd.DataFrame:
    found = events.groupby(keys, sort=False)[LISTS].agg(list).reset_index()
    found["user_id"], found["query"] = users[found["user"]], [[[]] * len(events) for events in found["event"]]
    return found.rename(columns={"user": "user_row"})


def write(out: Path, name: str, rows: pd.DataFrame, types: dict[str, pa.DataType]) -> None:
    rows[list(types)].to_parquet(
        out / f"{name}.parquet", compression="zstd", compression_level=1, row_group_size=1 << 14, index=False,
        schema=pa.schema(types),
    )  # fmt: skip


def main(log: str, out: Path) -> None:
    out.mkdir(parents=True)
    events, users, items = read(log)
    events = encode(split(k_core(events)), items)
    train = events[events["part"] == 0].assign(part=lambda some: some["place"] // MAX_ROW_EVENTS)
    write(out, "train", rows(train, ["user", "part"], users), TYPES)
    for name, part in (("valid", 1), ("test", 2)):
        target = events[(events["part"] == part) & (events["event"] == PURCHASE)].set_index("user")
        end = events["user"].map(target["place"])
        shown = events[(events["place"] < end) & (events["place"] >= end - MAX_CONTEXT)]
        found = rows(shown, ["user"], users).assign(part=0)
        targets = target.loc[found["user_row"], ["item_row", "event", "time_ms", "value"]].to_numpy().T
        for column, values in zip(TARGETS, targets, strict=True):
            found[column] = values.astype(TARGETS[column].to_pandas_dtype())
        latest = shown.groupby("user", sort=False)["time_ms"].max().to_numpy()
        if (latest >= found["target_time_ms"].to_numpy()).any():
            sys.exit("rows show their target")
        write(out, name, found, TYPES | TARGETS)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
