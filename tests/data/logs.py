"""A small shop's log, with all that makes logs hard, and prepare without Ray."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distft.data.phases import Phases, Task
from distft.data.settle import settle
from distft.data.tasks import Context
from distft.job import Job
from distft.schema import SPLITS
from distft.storage import Storage

HEADER = ("user", "item", "what", "when", "words", "price", "pieces")
TYPES = {"pv": "view", "buy": "purchase", "find": "search"}
COLUMNS = {
    "user_id": "user",
    "item_id": "item",
    "event": "what",
    "timestamp": "when",
    "query": "words",
    "value": "price",
    "quantity": "pieces",
}
START_S = 1_600_000_000


def rows(num_users: int = 60, num_items: int = 25, seed: int = 3) -> list[list[str]]:
    """Records in random order: repeated ones, cancellations, searches, shared moments and bad values among them."""
    rng = random.Random(seed)
    found = []
    for user in range(num_users):
        time_s = START_S + rng.randrange(86_400 * 10)
        for _ in range(rng.randrange(1, 30)):
            time_s += rng.choice([0, 60, 3600, 86_400])
            what = rng.choices(["pv", "buy", "find"], [5, 4, 1])[0]
            item = f"i{int(rng.paretovariate(0.7)) % num_items}"
            word = rng.choice(["Red shoes", "blue HAT", "red", "新しい hat", "rare" + str(user)])
            pieces = rng.choice([1, 1, 1, -1]) if what == "buy" else 1
            row = [f"u{user}", item, what, str(time_s), "", f"{rng.randrange(100)}.5", str(pieces)]
            if what == "find":
                row[1], row[4] = "", word
            found += [row] * rng.choice([1] * 9 + [2])
    rng.shuffle(found)
    bad = [
        ["", "i1", "pv", str(START_S), "", "1", "1"],
        ["u1", "", "pv", str(START_S), "", "1", "1"],
        ["u1", "i1", "wish", str(START_S), "", "1", "1"],
        ["u1", "i1", "pv", "yesterday", "", "1", "1"],
        ["u1", "i1", "pv", str(START_S), "", "cheap", "1"],
        ["u1", "i1", "pv"],
    ]
    for number, row in enumerate(bad):
        found.insert(7 * number, row)
    return found


def write_csv(path: Path, records: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> Path:
    """Writes a CSV with a header line."""
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *records])
    return path


def job(folder: Path, **data: Any) -> Job:
    """A job on the logs ``<folder>/*.csv``."""
    events = {"source": "files", "path": f"{folder}/*.csv", "columns": COLUMNS, "event_types": TYPES}
    clean = {"min_user_events": 3, "min_item_events": 3, "max_rejected_share": 0.5}
    section = {"events": [events], "clean": clean, "split": {"by": "time", "valid_days": 3, "test_days": 3}} | data
    pointwise = {"loss": {"kind": "bce", "num_negatives": 0}, "train": {"early_stopping": None}}
    more = pointwise if "label" in data else {}
    return Job.model_validate({"name": "small", "storage": str(folder / "run"), "data": section, **more})


def prepare_here(wanted: Job, parent: Path, num_partitions: int = 4) -> tuple[Storage, dict[str, Any]]:
    """(dataset, statistics) as prepare makes them, in this process."""

    def each(phase: str, task: Task, calls: Sequence[tuple[Any, ...]], weights: Any) -> list[dict[str, Any]]:
        return [task(*call) for call in calls]

    sources = [config.open() for config in wanted.data.events]
    settled = settle(wanted, sources)
    with Storage(parent).replacing("dataset") as staging:
        for folder in ("work", "rejected", *SPLITS):
            (staging / folder).make()
        context = Context(wanted, staging, settled.start.event_names, num_partitions, settled.key_digest)
        stats = Phases(context, settled.start, settled.tables, each).run(settled.reads, {})
    return Storage(parent) / "dataset", stats
