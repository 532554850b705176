"""Every shipped job on its real log: where the rows went, beside published figures and an independent count.

Run:  .venv/bin/python benchmarks/datasets.py        (after ``distft data fetch NAME`` for each of the data sets)

Each job is prepared as it is shipped. The same is then counted from the raw files with pandas and loops, without a line
of distft. Writes ``benchmarks/results/datasets.json``; ends with 1 if a figure differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"
DAY_MS = 86_400_000


@dataclass
class Log:
    """A raw log: ``events`` has user, item, event, time (ms, or its place where it has none), value, quantity."""

    rows: int
    events: pd.DataFrame
    rejected: Counter[str] = field(default_factory=Counter)


@dataclass
class Plan:
    """What the job does with it, written down anew."""

    log: Callable[[], Log]
    target: str
    split: str
    minimum: int
    days: tuple[float, float] = (0, 0)
    published: dict[str, int] = field(default_factory=dict)


def frame(user: Any, item: Any, event: Any, time: Any, **more: Any) -> pd.DataFrame:
    columns = {"user": user, "item": item, "event": event, "time": time, "value": 0.0, "quantity": 1.0}
    return pd.DataFrame(columns | more)


def jdata() -> Log:
    raw = pd.concat([pd.read_csv(DATA / "jdata" / name) for name in ("test.csv", "train.csv")], ignore_index=True)
    time = pd.to_datetime(raw["action_time"]).astype("datetime64[ms]").astype("int64")
    names = {1: "view", 2: "purchase", 3: "follow", 4: "comment"}
    return Log(len(raw), frame(raw["user_id"], raw["sku_id"], raw["type"].map(names), time))


def taobao() -> Log:
    raw = pd.read_csv(DATA / "taobao" / "UserBehavior.csv", header=None)
    whole = raw[raw[4] > 1_000_000_000]
    return Log(
        len(raw),
        frame(whole[0], whole[1], whole[3], whole[4] * 1000),
        Counter({"bad timestamp": len(raw) - len(whole)}),
    )


def online_retail() -> Log:
    raw = pd.read_csv(DATA / "online-retail" / "online_retail.csv.gz", dtype={"StockCode": str, "InvoiceNo": str})
    known = raw[raw["CustomerID"].notna()]
    time = pd.to_datetime(known["InvoiceDate"]).astype("datetime64[ms]").astype("int64")
    events = frame(
        known["CustomerID"], known["StockCode"], "purchase", time, value=known["UnitPrice"], quantity=known["Quantity"]
    )
    rejected = {"missing user_id": len(raw) - len(known), "cancellation": int((known["Quantity"] < 0).sum())}
    return Log(len(raw), events, Counter(rejected))


def ml100k() -> Log:
    raw = pd.read_csv(DATA / "ml-100k" / "ml-100k.inter", sep="\t")
    raw.columns = ["user", "item", "rating", "time"]
    return Log(
        len(raw), frame(raw["user"], raw["item"], "rating", (raw["time"] * 1000).astype("int64"), value=raw["rating"])
    )


def ml1m() -> Log:
    raw = pd.read_csv(DATA / "ml-1m" / "ml-1m_sas.txt", sep=" ", header=None)
    return Log(len(raw), frame(raw[0], raw[1], "rating", range(len(raw))))


def amazon_beauty() -> Log:
    lines = [line.split() for line in (DATA / "amazon-beauty" / "Beauty.txt").read_text().splitlines()]
    pairs = [(words[0], item) for words in lines for item in words[1:]]
    users, items = zip(*pairs, strict=True)
    return Log(len(pairs), frame(users, items, "purchase", range(len(pairs))))


PLANS = {
    "jdata": Plan(jdata, "purchase", "time", 1, (0.5, 0.5), {"rows": 29_445, "users": 3_829, "items": 12_195}),
    "taobao": Plan(taobao, "buy", "time", 1, (0.0104, 0.0208), {"rows": 96_169, "users": 58_732}),
    "online-retail": Plan(
        online_retail, "purchase", "time", 5, (28, 28), {"rows": 541_909, "users": 4_372, "missing user_id": 135_080}
    ),
    "ml100k": Plan(ml100k, "rating", "random", 5, published={"rows": 100_000, "users": 943, "items": 1_682}),
    "ml1m": Plan(ml1m, "rating", "last", 5, published={"rows": 999_611, "users": 6_040, "items": 3_416}),
    "amazon-beauty": Plan(
        amazon_beauty, "purchase", "last", 5, published={"rows": 198_502, "users": 22_363, "items": 12_101}
    ),
}


def count(plan: Plan, log: Log) -> dict[str, Any]:
    """The account of a log, and what the split gives where it is no matter of chance."""
    events, filtered = log.events, Counter[str]()
    again = events.duplicated()
    filtered["duplicate"] = int((again & (events["quantity"] >= 0)).sum())
    events = without_cancelled(events[~again].sort_values("time", kind="stable"), filtered)
    last = int(events["time"].max())
    test_from = last - round(plan.days[1] * DAY_MS) + 1
    valid_from = test_from - round(plan.days[0] * DAY_MS)
    early = events["time"] < valid_from if plan.split == "time" else pd.Series(True, events.index)
    kept = pd.concat([core(events[early], plan.minimum, filtered), events[~early]])
    found: dict[str, Any] = {"rows": log.rows, "kept": len(kept), "users": kept["user"].nunique()}
    found |= {"rejected": dict(log.rejected), "filtered": {name: number for name, number in filtered.items() if number}}
    if plan.split == "time":
        targets = kept[(kept["event"] == plan.target) & (kept["time"] >= test_from)]
        seen = set(kept[kept["time"] < valid_from]["item"])
        found |= {"items": kept[kept["time"] < test_from]["item"].nunique(), "test_targets": len(targets)}
        found["cold_test_targets"] = int((~targets["item"].isin(seen)).sum())
    elif plan.split == "last":
        tested = kept.groupby("user").filter(lambda of: len(of) >= 3)
        place = tested.groupby("user").cumcount(ascending=False)
        targets, seen = tested[place == 0], set(tested[place > 1]["item"]) | set(kept.drop(tested.index)["item"])
        found |= {"test_targets": len(targets), "cold_test_targets": int((~targets["item"].isin(seen)).sum())}
        found["items"] = len(seen | set(tested[place == 1]["item"]))
    return found


def without_cancelled(events: pd.DataFrame, filtered: Counter[str]) -> pd.DataFrame:
    """A negative quantity takes back the user's latest purchase of the item that still stands."""
    standing, gone = defaultdict(list), []
    if not (events["quantity"] < 0).any():
        return events
    for index, user, item, quantity in events[["user", "item", "quantity"]].itertuples():
        if quantity >= 0:
            standing[user, item].append(index)
        else:
            gone.append(index)
            if standing[user, item]:
                filtered["cancelled"] += 1
                gone.append(standing[user, item].pop())
    return events.drop(gone)


def core(events: pd.DataFrame, minimum: int, filtered: Counter[str]) -> pd.DataFrame:
    """Without users and items of fewer events, until nothing changes."""
    while True:
        before = len(events)
        for column in ("user", "item"):
            enough = events.groupby(column)["time"].transform("size") >= minimum
            filtered[f"k_core_{column}"] += int((~enough).sum())
            events = events[enough]
        if len(events) == before:
            return events


def prepared(name: str, scratch: str) -> dict[str, Any]:
    """The same figures as prepare gives them."""
    command = [
        sys.executable,
        "-m",
        "distft",
        "prepare",
        f"jobs/{name}.yaml",
        "--storage",
        f"{scratch}/{name}",
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    stats = json.loads(done.stdout.splitlines()[-1])["stats"]
    cold = stats["profile"]["cold"]["test"]
    return {
        "rows": stats["rows_in"],
        "kept": stats["kept"],
        "users": stats["users"],
        "rejected": {reason: number for reason, number in stats["rejected"]["by_reason"].items() if number},
        "filtered": {reason: number for reason, number in stats["filtered"]["by_reason"].items() if number},
        "items": stats["items"],
        "test_targets": cold["targets"],
        "cold_test_targets": cold["cold_targets"],
    }


def raw_counts(log: Log) -> dict[str, int]:
    """What publications tell of a log: before anything is cleaned."""
    return {
        "rows": log.rows, "users": log.events["user"].nunique(), "items": log.events["item"].nunique(), **log.rejected
    }  # fmt: skip


def main() -> int:
    result: dict[str, Any] = {"command": "benchmarks/datasets.py", "data_sets": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name, plan in PLANS.items():
            log = plan.log()
            ours, independent, raw = prepared(name, scratch), count(plan, log), raw_counts(log)
            closed = ours["kept"] + sum(ours["rejected"].values()) + sum(ours["filtered"].values()) == ours["rows"]
            wrong = [key for key, value in independent.items() if ours[key] != value]
            wrong += [f"published {key}" for key, value in plan.published.items() if raw[key] != value]
            result["data_sets"][name] = {
                "prepare": ours, "independent": independent, "published": plan.published, "account_closed": closed,
                "differ": wrong,
            }  # fmt: skip
            print(name, "agrees" if closed and not wrong else f"differs: {wrong}", ours, flush=True)
    (ROOT / "benchmarks" / "results" / "datasets.json").write_text(json.dumps(result, indent=2) + "\n")
    return int(any(one["differ"] or not one["account_closed"] for one in result["data_sets"].values()))


if __name__ == "__main__":
    sys.exit(main())
